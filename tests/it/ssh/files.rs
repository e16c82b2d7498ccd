//! Files on a host.

use runbook_core::secret::Secret;
use runbook_core::{Code, Value};

use super::{Bench, failure, options};

fn mode(b: &Bench, path: &str) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(b.host.home().join(path)).unwrap().permissions().mode() & 0o7777
}

#[tokio::test(flavor = "multi_thread")]
async fn write_file_changes_only_what_differs() {
    let Some(b) = Bench::new("") else { return };
    let write = |id: &'static str, content: Value, opts: Value| b.act(id, "write_file", vec!["a folder/it's.conf".into(), content, opts]);
    let o = write("1", "x = 1\n".into(), options([])).await.unwrap();
    assert_eq!((o.changed, o.value, mode(&b, "a folder/it's.conf")), (Some(true), true.into(), 0o644));
    let o = write("2", "x = 1\n".into(), options([])).await.unwrap();
    assert_eq!((o.changed, o.value, o.note.as_deref()), (Some(false), false.into(), Some("a folder/it's.conf is so already")));
    let o = write("3", "x = 1\n".into(), options([("mode", "0600".into()), ("owner", "root".into())])).await.unwrap();
    assert_eq!((o.changed, mode(&b, "a folder/it's.conf")), (Some(true), 0o600));
    let o = write("4", "x = 1\n".into(), options([("mode", "0600".into()), ("owner", "0".into())])).await.unwrap();
    assert_eq!(o.changed, Some(false), "an owner may be given by number");
    let o = write("5", Value::Blob(vec![0, 255, 10]), options([])).await.unwrap();
    assert_eq!((o.changed, mode(&b, "a folder/it's.conf")), (Some(true), 0o600), "permissions stay unless they are given");
    assert_eq!(std::fs::read(b.host.home().join("a folder/it's.conf")).unwrap(), [0, 255, 10]);
    let o = write("6", Secret::new("pw", "s3cret-value").into(), options([])).await.unwrap();
    assert_eq!((o.changed, b.read("a folder/it's.conf")), (Some(true), "s3cret-value".to_string()));
    let left: Vec<_> = std::fs::read_dir(b.host.home().join("a folder")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 1, "nothing is left beside it: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_file_says_why_it_cannot() {
    let Some(b) = Bench::new("") else { return };
    std::fs::create_dir(b.host.home().join("folder")).unwrap();
    let e = failure(b.act("1", "write_file", vec!["folder".into(), "x".into()]).await, Code::FILE_WRITE);
    assert_eq!(e.to_string(), "RB0401: folder cannot be written: it is a folder (host old)");
    let e = failure(b.act("2", "write_file", vec!["/proc/nothing/here".into(), "x".into()]).await, Code::FILE_WRITE);
    assert!(e.message.contains("/proc/nothing"), "{e}");
    let e =
        failure(b.act("3", "write_file", vec!["f".into(), "x".into(), options([("owner", "nobody-such".into())])]).await, Code::FILE_WRITE);
    assert!(e.message.contains("nobody-such"), "{e}");
    assert!(!b.host.home().join("f").exists());
    failure(b.act("4", "write_file", vec!["~/f".into(), "x".into()]).await, Code::COMMAND_BAD);
    failure(b.act("5", "write_file", vec!["f".into(), "x".into(), options([("mode", "rw".into())])]).await, Code::COMMAND_BAD);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_file_follows_a_link() {
    let Some(b) = Bench::new("") else { return };
    b.write("real", "old");
    std::os::unix::fs::symlink("real", b.host.home().join("link")).unwrap();
    b.act("1", "write_file", vec!["link".into(), "new".into()]).await.unwrap();
    assert_eq!(b.read("real"), "new");
    assert!(b.host.home().join("link").is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn template_and_upload_take_files_of_the_project() {
    let Some(b) = Bench::new("") else { return };
    b.world.files.lock().insert("t/shop.tera".into(), b"port={{ port }} on {{ host.name }} at {{ host.address }}\n".to_vec());
    let args = |vars: Value| vec!["t/shop.tera".into(), "shop.conf".into(), options([("vars", vars), ("mode", "0640".into())])];
    let o = b.act("1", "template", args(options([("port", 80i64.into())]))).await.unwrap();
    assert_eq!((o.changed, b.read("shop.conf").as_str(), mode(&b, "shop.conf")), (Some(true), "port=80 on old at 127.0.0.1\n", 0o640));
    assert_eq!(b.act("2", "template", args(options([("port", 80i64.into())]))).await.unwrap().changed, Some(false));
    let e = failure(b.act("3", "template", args(options([]))).await, Code::TEMPLATE);
    assert!(e.message.contains("t/shop.tera") && e.message.contains("port"), "{e}");
    b.world.files.lock().insert("blob".into(), vec![1, 0, 2]);
    assert_eq!(b.act("4", "upload", vec!["blob".into(), "up".into()]).await.unwrap().changed, Some(true));
    assert_eq!(b.act("5", "upload", vec!["blob".into(), "up".into()]).await.unwrap().changed, Some(false));
    let e = b.act("6", "upload", vec!["missing".into(), "up".into()]).await.unwrap_err();
    assert_eq!(e.code, Code::MISSING_FILE);
}

#[tokio::test(flavor = "multi_thread")]
async fn download_streams_into_the_project() {
    let Some(b) = Bench::new("") else { return };
    let dir = tempfile::tempdir().unwrap();
    *b.world.folder.lock() = Some(dir.path().to_path_buf());
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    b.write("big", &data);
    let args = || vec!["big".into(), "old/big".into()];
    assert_eq!(b.act("1", "download", args()).await.unwrap().changed, Some(true));
    assert!(std::fs::read(dir.path().join("old/big")).unwrap() == data);
    let o = b.act("2", "download", args()).await.unwrap();
    assert_eq!((o.changed, o.note.as_deref()), (Some(false), Some("old/big is the same already")));
    let e = b.act("3", "download", vec!["none".into(), "x".into()]).await.unwrap_err();
    assert_eq!((e.code, e.message.as_str()), (Code::FILE_MISSING, "there is no none"));
    assert_eq!(std::fs::read_dir(dir.path().join("old")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_can_be_looked_at() {
    let Some(b) = Bench::new("") else { return };
    b.write("-dash", "hello\n");
    std::os::unix::fs::symlink("nowhere", b.host.home().join("dangling")).unwrap();
    assert_eq!(b.act("1", "read_file", vec!["-dash".into()]).await.unwrap().value, "hello\n".into());
    let sum = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    assert_eq!(b.act("2", "checksum", vec!["-dash".into()]).await.unwrap().value, sum.into());
    for (path, there) in [("-dash", true), ("dangling", true), ("none", false), (".", true)] {
        assert_eq!(b.act("3", "exists", vec![path.into()]).await.unwrap().value, there.into(), "{path}");
    }
    assert_eq!(failure(b.act("4", "read_file", vec!["none".into()]).await, Code::FILE_MISSING).message, "there is no none");
    failure(b.act("5", "read_file", vec![".".into()]).await, Code::FILE_READ);
    b.write("bin", [0xff, 0xfe]);
    failure(b.act("6", "read_file", vec!["bin".into()]).await, Code::FILE_READ);
    b.write("large", vec![b'x'; (4 << 20) + 1]);
    failure(b.act("7", "read_file", vec!["large".into()]).await, Code::FILE_TOO_LARGE);
    b.write("just", vec![b'x'; 4 << 20]);
    let v = b.act("8", "read_file", vec!["just".into()]).await.unwrap().value;
    assert_eq!(v.as_str().map(str::len), Some(4 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_takes_files_and_folders_but_never_the_home() {
    let Some(b) = Bench::new("") else { return };
    b.write("a/b/c", "x");
    std::os::unix::fs::symlink("a", b.host.home().join("link")).unwrap();
    let o = b.act("1", "remove", vec!["link".into()]).await.unwrap();
    assert_eq!((o.changed, b.read("a/b/c").as_str()), (Some(true), "x"));
    assert_eq!(b.act("2", "remove", vec!["a/".into()]).await.unwrap().changed, Some(true));
    assert!(!b.host.home().join("a").exists());
    let o = b.act("3", "remove", vec!["a".into()]).await.unwrap();
    assert_eq!((o.changed, o.value, o.note.as_deref()), (Some(false), false.into(), Some("there is no a")));
    b.write("keep", "x");
    let home = b.host.home().display().to_string();
    for path in [home.clone(), format!("{home}/x/.."), b.host.dir.path().display().to_string(), "../home".to_string(), "..".to_string()] {
        std::fs::create_dir_all(b.host.home().join("x")).unwrap();
        failure(b.act("4", "remove", vec![path.clone().into()]).await, Code::COMMAND_BAD);
        assert_eq!(b.read("keep"), "x", "{path}");
    }
    failure(b.act("5", "remove", vec!["/proc/self/status".into()]).await, Code::FILE_WRITE);
}
