//! The helper beside an engine that sends an image without the layers that the other side has: `runbook __helper image …`.
//!
//! `docker save` writes all layers. Its archive has `manifest.json` last, which says in which file which layer lies; so it is read twice:
//! once for that, then again without what is not wanted. What is left out never leaves the host. `docker load` looks for a layer's file
//! only when it does not have the layer (`tarexport/load.go` of Docker Engine).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// Where the layers of an image lie in its archive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// The files of the layers, the lowest first.
    pub layers: Vec<String>,
    /// Files that are links to others.
    pub links: BTreeMap<String, String>,
    /// The sizes of the others.
    pub sizes: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

impl Layout {
    /// The files that need not be sent when the lowest `have` layers are there: none that another layer's file is a link to.
    #[must_use]
    pub fn without(&self, have: usize) -> Vec<String> {
        let (there, wanted) = self.layers.split_at(have.min(self.layers.len()));
        let real = |file: &String| self.links.get(file).cloned().unwrap_or_else(|| file.clone());
        let wanted: Vec<String> = wanted.iter().flat_map(|f| [f.clone(), real(f)]).collect();
        there.iter().filter(|f| !wanted.contains(f)).cloned().collect()
    }

    /// How many bytes of layers are sent then.
    #[must_use]
    pub fn bytes(&self, without: &[String]) -> u64 {
        self.sizes.iter().filter(|(f, _)| !without.contains(f)).map(|(_, n)| n).sum()
    }
}

/// A link's target, as a path from the top of the archive.
fn target(of: &str, link: &str) -> String {
    let mut parts: Vec<&str> = of.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            p => parts.push(p),
        }
    }
    parts.join("/")
}

/// Reads an archive for its layout.
///
/// # Errors
/// When it is no archive of one image.
pub fn read(archive: impl Read) -> io::Result<Layout> {
    let mut layout = Layout::default();
    let mut manifest = None;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if path == "manifest.json" {
            let mut text = String::new();
            entry.by_ref().take(16 << 20).read_to_string(&mut text)?;
            manifest = Some(text);
        } else if let (true, Some(link)) = (kind.is_symlink() || kind.is_hard_link(), entry.link_name_bytes()) {
            let link = String::from_utf8_lossy(&link).into_owned();
            layout.links.insert(path.clone(), if kind.is_symlink() { target(&path, &link) } else { link });
        } else if kind.is_file() {
            layout.sizes.insert(path, entry.size());
        }
    }
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let manifest = manifest.ok_or_else(|| bad("the archive has no manifest.json".into()))?;
    let all: Vec<Manifest> = serde_json::from_str(&manifest).map_err(|e| bad(format!("manifest.json is not understood: {e}")))?;
    let [one] = <[Manifest; 1]>::try_from(all).map_err(|all| bad(format!("it holds {} images", all.len())))?;
    layout.layers = one.layers;
    Ok(layout)
}

/// Copies an archive without some of its files.
///
/// # Errors
/// Those of reading and writing.
pub fn copy(archive: impl Read, to: impl Write, without: &[String]) -> io::Result<()> {
    let mut to = tar::Builder::new(to);
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        if without.iter().any(|w| w.as_bytes() == path.as_slice()) {
            continue;
        }
        let mut header = entry.header().clone();
        // A size beyond 8 GiB stands in an entry of its own before this one.
        header.set_size(entry.size());
        header.set_cksum();
        let name = entry.path()?.into_owned();
        match entry.link_name()?.map(std::borrow::Cow::into_owned) {
            Some(link) => to.append_link(&mut header, name, link)?,
            None => to.append_data(&mut header, name, &mut entry)?,
        }
    }
    to.into_inner()?.flush()
}

/// Serves `runbook __helper image layout SOCKET NAME` and `… send SOCKET NAME FILE…`. Gives the exit status.
pub(crate) fn serve(args: &[String]) -> i32 {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["layout", socket, name] => saved(socket, name, |archive| {
            let layout = read(archive)?;
            println!("{}", serde_json::to_string(&layout)?);
            Ok(())
        }),
        ["send", socket, name, ..] => saved(socket, name, |archive| copy(archive, io::stdout().lock(), args.get(3..).unwrap_or_default())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "layout or send, a socket and a name are wanted")),
    };
    match done {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{e}");
            1
        }
    }
}

/// Has `docker save` write an image, and reads what it writes.
fn saved(socket: &str, name: &str, work: impl FnOnce(io::BufReader<std::process::ChildStdout>) -> io::Result<()>) -> io::Result<()> {
    let mut child = Command::new("docker")
        .args(["-H", &format!("unix://{socket}"), "save", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("docker cannot be run: {e}")))?;
    let out = child.stdout.take().ok_or_else(|| io::Error::other("docker has no output"))?;
    let worked = work(io::BufReader::with_capacity(1 << 20, out));
    let status = child.wait()?;
    // What docker said stands on standard error already, and is the cause of what could not be read.
    if status.success() { worked } else { Err(io::Error::other(format!("docker save ended with {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut b = tar::Builder::new(Vec::new());
        let mut add = |path: &str, data: &[u8], link: Option<&str>| {
            let mut h = tar::Header::new_gnu();
            h.set_mode(0o644);
            if let Some(link) = link {
                h.set_entry_type(tar::EntryType::Symlink);
                h.set_size(0);
                b.append_link(&mut h, path, link).unwrap();
            } else {
                h.set_size(data.len() as u64);
                b.append_data(&mut h, path, data).unwrap();
            }
        };
        add("c/layer.tar", b"third", None);
        add("a/layer.tar", b"first!", None);
        add("d/layer.tar", b"", Some("../a/layer.tar"));
        add("b/layer.tar", b"second..", None);
        let manifest = r#"[{"Config":"x.json","RepoTags":["s:1"],"Layers":["a/layer.tar","b/layer.tar","c/layer.tar","d/layer.tar"]}]"#;
        add("manifest.json", manifest.as_bytes(), None);
        b.into_inner().unwrap()
    }

    #[test]
    fn what_is_there_is_left_out_but_for_what_another_layer_is() {
        let all = archive();
        let layout = read(all.as_slice()).unwrap();
        assert_eq!(layout.links.get("d/layer.tar").map(String::as_str), Some("a/layer.tar"));
        assert_eq!(layout.without(0), Vec::<String>::new());
        // The fourth is a link to the first.
        assert_eq!(layout.without(2), ["b/layer.tar"]);
        assert_eq!(layout.without(4), ["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"]);
        let mut rest = Vec::new();
        copy(all.as_slice(), &mut rest, &layout.without(2)).unwrap();
        let mut archive = tar::Archive::new(rest.as_slice());
        let left: Vec<(String, String)> = archive
            .entries()
            .unwrap()
            .map(|e| {
                let mut e = e.unwrap();
                let mut text = String::new();
                e.read_to_string(&mut text).unwrap();
                (e.path().unwrap().display().to_string(), text)
            })
            .collect();
        let names: Vec<&str> = left.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["c/layer.tar", "a/layer.tar", "d/layer.tar", "manifest.json"]);
        assert_eq!((left[0].1.as_str(), left[1].1.as_str()), ("third", "first!"));
        assert_eq!(layout.bytes(&layout.without(2)), 5 + 6);
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        assert!(read(&b""[..]).unwrap_err().to_string().contains("manifest.json"));
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(2);
        b.append_data(&mut h, "manifest.json", &b"[]"[..]).unwrap();
        assert!(read(b.into_inner().unwrap().as_slice()).unwrap_err().to_string().contains("0 images"));
    }

    #[test]
    fn links_are_read_from_where_they_lie() {
        assert_eq!(target("b/layer.tar", "../a/layer.tar"), "a/layer.tar");
        assert_eq!(target("blobs/sha256/x", "./y"), "blobs/sha256/y");
    }
}
