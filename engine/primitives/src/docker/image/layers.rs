//! The helper beside an engine that sends an image without the layers that the other side has: `runbook __helper image …`.
//!
//! `docker save` writes all layers, and says only at the end, in `manifest.json`, which file is which layer. Read twice, that would cost more than
//! it saves. But the files bear names from which it can be told as they come:
//!
//! - From Docker 25 on, a layer's file is `blobs/sha256/` and its hash, as the image's configuration has it.
//! - Before, it is `ID/layer.tar`, where ID is the hash of a few words about the layer with its chain of hashes (`CreateID` in
//!   `image/v1/imagev1.go` of Docker Engine); the words stand in `ID/json` before it. When the same hash comes out here, it is that layer.
//!
//! A file of which nothing can be told is sent. `docker load` looks for a layer's file only when it does not have the layer
//! (`image/tarexport/load.go`).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use runbook_core::digest::sha256_hex;
use serde_json::Value as Json;

/// The layers of an image, by the hashes of their content, the lowest first, and how many of them the other side has.
#[derive(Debug)]
pub struct Layers {
    diff_ids: Vec<String>,
    /// The hash of each layer with all below it.
    chain: Vec<String>,
    have: usize,
}

impl Layers {
    /// Of these hashes the other side has the first `have`.
    #[must_use]
    pub fn new(diff_ids: Vec<String>, have: usize) -> Layers {
        let mut chain: Vec<String> = Vec::new();
        for d in &diff_ids {
            chain.push(match chain.last() {
                None => d.clone(),
                Some(below) => format!("sha256:{}", sha256_hex(format!("{below} {d}").as_bytes())),
            });
        }
        Layers { diff_ids, chain, have }
    }

    /// Whether a layer need not be sent: it is there, and no layer that is not has the same content, and so perhaps no file of its own.
    fn may_stay(&self, layer: usize) -> bool {
        let (there, wanted) = self.diff_ids.split_at(self.have.min(self.diff_ids.len()));
        there.get(layer).is_some_and(|d| !wanted.contains(d))
    }

    /// The layer whose words these are, as engines before Docker 25 write them: it must come out with the name that its folder has.
    fn named(&self, folder: &str, words: &str) -> Option<usize> {
        let words: Json = serde_json::from_str(words).ok()?;
        let (config, created) = (words.get("container_config")?.to_string(), words.get("created")?.to_string());
        let mut parent = String::new();
        for (k, chain) in self.chain.iter().enumerate() {
            let id = sha256_hex(format!(r#"{{"container_config":{config},"created":{created},"layer_id":"{chain}"{parent}}}"#).as_bytes());
            if id == folder {
                return Some(k);
            }
            parent = format!(r#","parent":"sha256:{id}""#);
        }
        None
    }

    /// Copies an archive of the image without the layers that need not be sent.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn copy(&self, archive: impl Read, to: impl Write) -> io::Result<()> {
        let mut to = tar::Builder::new(to);
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let plain = entry.header().entry_type().is_file();
            let layer = match path.split_once('/') {
                Some((folder, "layer.tar")) => known.get(folder).copied(),
                Some(("blobs", blob)) => {
                    let hash = blob.strip_prefix("sha256/").map(|h| format!("sha256:{h}"));
                    hash.and_then(|h| self.diff_ids.iter().position(|d| *d == h))
                }
                _ => None,
            };
            if plain && layer.is_some_and(|k| self.may_stay(k)) {
                continue;
            }
            let mut header = entry.header().clone();
            // A size beyond 8 GiB stands in an entry of its own before this one.
            header.set_size(entry.size());
            let name = entry.path()?.into_owned();
            if let Some(link) = entry.link_name()?.map(std::borrow::Cow::into_owned) {
                to.append_link(&mut header, name, link)?;
            } else if let (Some((folder, "json")), true) = (path.split_once('/'), entry.size() < 1 << 20) {
                let mut words = String::new();
                entry.read_to_string(&mut words)?;
                if let Some(k) = self.named(folder, &words) {
                    known.insert(folder.to_string(), k);
                }
                to.append_data(&mut header, name, words.as_bytes())?;
            } else {
                to.append_data(&mut header, name, &mut entry)?;
            }
        }
        to.into_inner()?.flush()
    }
}

/// Serves `runbook __helper image send SOCKET NAME HAVE HASH…`. Gives the exit status.
pub(crate) fn serve(args: &[String]) -> i32 {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["send", socket, name, have, hashes @ ..] => match have.parse() {
            Ok(have) => send(socket, name, &Layers::new(hashes.iter().map(ToString::to_string).collect(), have)),
            Err(e) => Err(io::Error::new(io::ErrorKind::InvalidInput, e)),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "send, a socket, a name and a number are wanted")),
    };
    match done {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{e}");
            1
        }
    }
}

/// Has `docker save` write an image, and sends what is wanted of it.
fn send(socket: &str, name: &str, layers: &Layers) -> io::Result<()> {
    let mut child = Command::new("docker")
        .args(["-H", &format!("unix://{socket}"), "save", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("docker cannot be run: {e}")))?;
    let out = child.stdout.take().ok_or_else(|| io::Error::other("docker has no output"))?;
    let to = io::BufWriter::with_capacity(256 << 10, io::stdout().lock());
    let copied = layers.copy(io::BufReader::with_capacity(1 << 20, out), to);
    let status = child.wait()?;
    // What docker said stands on standard error already, and is the cause of what could not be read.
    if status.success() { copied } else { Err(io::Error::other(format!("docker save ended with {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = r#"{"id":"x","created":"1970-01-01T01:00:00+01:00","container_config":{"Hostname":"","Env":null}}"#;

    fn hash(text: &str) -> String {
        format!("sha256:{}", sha256_hex(text.as_bytes()))
    }

    /// The folders that an engine before Docker 25 makes for these layers.
    fn folders(l: &Layers) -> Vec<String> {
        let mut all: Vec<String> = vec![];
        for chain in &l.chain {
            let parent = all.last().map_or(String::new(), |p| format!(r#","parent":"sha256:{p}""#));
            let text = format!(
                r#"{{"container_config":{{"Hostname":"","Env":null}},"created":"1970-01-01T01:00:00+01:00","layer_id":"{chain}"{parent}}}"#
            );
            all.push(sha256_hex(text.as_bytes()));
        }
        all
    }

    fn archive(entries: &[(String, &str)]) -> Vec<u8> {
        let mut b = tar::Builder::new(Vec::new());
        for (path, data) in entries {
            let mut h = tar::Header::new_gnu();
            h.set_mode(0o644);
            match data.strip_prefix("-> ") {
                Some(link) => {
                    h.set_entry_type(tar::EntryType::Symlink);
                    h.set_size(0);
                    b.append_link(&mut h, path, link).unwrap();
                }
                None => {
                    h.set_size(data.len() as u64);
                    b.append_data(&mut h, path, data.as_bytes()).unwrap();
                }
            }
        }
        b.into_inner().unwrap()
    }

    fn left(l: &Layers, archive: &[u8]) -> Vec<(String, String)> {
        let mut rest = Vec::new();
        l.copy(archive, &mut rest).unwrap();
        let mut archive = tar::Archive::new(rest.as_slice());
        let read = |e: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut e = e.unwrap();
            let mut text = String::new();
            e.read_to_string(&mut text).unwrap();
            (e.path().unwrap().display().to_string(), text)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn layers_that_are_there_are_left_out_of_what_older_engines_write() {
        let of = |have| Layers::new(["a", "b", "c", "a"].map(hash).to_vec(), have);
        let f = folders(&of(0));
        let mut entries: Vec<(String, &str)> = vec![];
        // In the order of their names, which is none.
        for (i, content) in [(2, "third"), (0, "first"), (3, "-> first"), (1, "second")] {
            entries.extend([
                (format!("{}/VERSION", f[i]), "1.0"),
                (format!("{}/json", f[i]), WORDS),
                (format!("{}/layer.tar", f[i]), content),
            ]);
        }
        entries.push(("manifest.json".into(), "[]"));
        let all = archive(&entries);
        let layers = |have| -> Vec<String> {
            let all = left(&of(have), &all);
            assert_eq!(all.last().unwrap(), &("manifest.json".to_string(), "[]".to_string()));
            all.into_iter().filter(|(p, _)| p.ends_with("layer.tar")).map(|(_, text)| text).collect()
        };
        assert_eq!(layers(0), ["third", "first", "", "second"]);
        // The fourth has the content of the first, and is a link to it.
        assert_eq!(layers(1), ["third", "first", "", "second"]);
        assert_eq!(layers(2), ["third", "first", ""]);
        assert_eq!(layers(3), ["first", ""]);
        // Words that do not come out with the folder's name prove nothing.
        let other = archive(&[
            ("0/json".into(), WORDS),
            ("0/layer.tar".into(), "kept"),
            ("1/json".into(), "not json"),
            ("1/layer.tar".into(), "too"),
        ]);
        assert_eq!(left(&of(4), &other).len(), 4);
    }

    #[test]
    fn layers_that_are_there_are_left_out_of_what_newer_engines_write() {
        let l = Layers::new(["a", "b", "c"].map(hash).to_vec(), 2);
        let blob = |text: &str| format!("blobs/{}", hash(text).replace(':', "/"));
        let all = archive(&[(blob("a"), "a"), (blob("c"), "c"), (blob("config"), "{}"), (blob("b"), "b"), ("manifest.json".into(), "[]")]);
        let names: Vec<String> = left(&l, &all).into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, [blob("c"), blob("config"), "manifest.json".to_string()]);
    }

    #[test]
    fn a_layer_stands_upon_those_below_it() {
        let l = Layers::new(["a", "b"].map(hash).to_vec(), 0);
        assert_eq!(l.chain[0], hash("a"));
        assert_eq!(l.chain[1], hash(&format!("{} {}", hash("a"), hash("b"))));
    }
}
