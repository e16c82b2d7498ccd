//! The head of a `tar` archive of one file: everything but its content. A file that was sent in blocks gets its attributes by it.

/// How much of an archive is read for it. What has longer attributes goes whole.
pub(super) const MOST: usize = 16 << 10;

const BLOCK: usize = 512;

fn octal(field: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(field).ok()?;
    usize::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

/// The pax records and the header of the one file of an archive of which this is the beginning; `None` when it is cut short or has
/// anything else in it.
pub(super) fn read(archive: &[u8]) -> Option<Vec<u8>> {
    let first = archive.get(..BLOCK)?;
    match first.get(156)? {
        b'0' => Some(first.to_vec()),
        b'x' => {
            let n = octal(first.get(124..136)?)?;
            let records = archive.get(BLOCK..BLOCK.checked_add(n)?)?;
            let at = BLOCK + n.div_ceil(BLOCK) * BLOCK;
            let header = archive.get(at..at + BLOCK)?;
            if header.get(156) != Some(&b'0') {
                return None;
            }
            let mut kept = Vec::new();
            let mut rest = records;
            while !rest.is_empty() {
                let space = rest.iter().position(|b| *b == b' ')?;
                let len: usize = std::str::from_utf8(rest.get(..space)?).ok()?.parse().ok()?;
                let (record, more) = rest.split_at_checked(len.max(1))?;
                let text = record.get(space + 1..)?;
                // Name and size are those of another file here.
                if !text.starts_with(b"path=") && !text.starts_with(b"size=") {
                    kept.extend_from_slice(record);
                }
                rest = more;
            }
            let mut out = first.to_vec();
            number(&mut out, kept.len());
            let padded = kept.len().div_ceil(BLOCK) * BLOCK;
            kept.resize(padded, 0);
            out.extend_from_slice(&kept);
            out.extend_from_slice(header);
            Some(out)
        }
        _ => None,
    }
}

/// What [`read`] gave as an archive's entry of an empty file of this name.
pub(super) fn alone(head: &[u8], name: &str) -> Vec<u8> {
    let at = head.len().saturating_sub(BLOCK);
    let (records, header) = head.split_at_checked(at).unwrap_or((&[], head));
    let mut out = records.to_vec();
    if let Some(first) = out.get_mut(..BLOCK) {
        seal(first);
    }
    let mut header = header.to_vec();
    number(&mut header, 0);
    // The prefix of a long name goes as well.
    for range in [0..100, 345..500] {
        if let Some(field) = header.get_mut(range) {
            field.fill(0);
        }
    }
    if let Some(field) = header.get_mut(..name.len().min(99)) {
        field.copy_from_slice(name.get(..field.len()).unwrap_or_default().as_bytes());
    }
    seal(&mut header);
    out.extend_from_slice(&header);
    out
}

fn number(header: &mut [u8], n: usize) {
    if let Some(field) = header.get_mut(124..136) {
        field.copy_from_slice(format!("{n:011o}\0").as_bytes());
    }
}

/// Writes the sum of a header.
fn seal(header: &mut [u8]) {
    if let Some(field) = header.get_mut(148..156) {
        field.fill(b' ');
    }
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn an_archive_of_attributes_is_one_that_tar_takes() {
        let dir = tempfile::tempdir().unwrap();
        let long = "a name that is long enough to need a record of its own ".repeat(3);
        let path = dir.path().join(&long);
        std::fs::write(&path, vec![1; 300_000]).unwrap();
        let when = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(when).unwrap();
        let made = Command::new("tar").args(["-c", "--format=posix", "-f", "-", "--", &long]).current_dir(dir.path()).output().unwrap();
        let head = read(&made.stdout[..MOST]).unwrap();
        assert!(read(&made.stdout[..600]).is_none() && read(b"").is_none());
        let mut archive = alone(&head, "other");
        archive.extend_from_slice(&[0; 1024]);
        std::fs::write(dir.path().join("tar"), archive).unwrap();
        let took = Command::new("tar").args(["-x", "-p", "-f", "tar"]).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap();
        assert!(took.status.success() && took.stderr.is_empty(), "{took:?}");
        let meta = std::fs::metadata(dir.path().join("other")).unwrap();
        assert_eq!((meta.len(), meta.modified().unwrap()), (0, when));
    }
}
