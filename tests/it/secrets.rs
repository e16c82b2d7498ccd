//! A secret that a command prints, in any usual form, is in no file, log, screen or journal.

use std::path::Path;

use crate::support::have;
use crate::support::project::Project;

const SECRET: &str = "Zw8 k'q/\"+$x&é=Tr0ub4dor";

/// Every file below `dir` whose content has one of `forms`.
fn leaks(dir: &Path, forms: &[String], found: &mut Vec<String>) {
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = e.path();
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            leaks(&path, forms, found);
        } else if meta.is_file() {
            let bytes = std::fs::read(&path).unwrap_or_default();
            for f in forms {
                if bytes.windows(f.len()).any(|w| w == f.as_bytes()) {
                    found.push(format!("{}: {f}", path.display()));
                }
            }
        }
    }
}

#[test]
fn a_secret_that_a_command_prints_is_nowhere() {
    if !have("python3") {
        return;
    }
    let p = Project::new();
    let inventory = p.path().join("runbook.toml");
    let text = std::fs::read_to_string(&inventory).unwrap();
    std::fs::write(&inventory, format!("{text}\n[secrets]\napi = {{ env = \"SHOP_API_KEY\" }}\n")).unwrap();
    let script = r#"
        let old = host("old");
        let key = secret("api");
        let forms = "import os,sys,base64,urllib.parse,shlex,json\nk=os.environ['KEY']\nfor f in (k, base64.b64encode(k.encode()).decode(), base64.b64encode(('user:'+k).encode()).decode(), base64.urlsafe_b64encode(k.encode()).decode(), urllib.parse.quote(k, safe=''), urllib.parse.quote_plus(k), shlex.quote(k), json.dumps(k, ensure_ascii=False), k.encode().hex()): print('form', f); print('form', f, file=sys.stderr)\n";
        step "Prints it" {
            let out = old.run(["python3", "-c", forms], #{ env: #{ KEY: key } });
            log(out.stdout);
            old.try_run("cat >&2; exit 3", #{ stdin: key });
            old.read("cat", #{ stdin: key });
            old.write_file("kept/by-name", key, #{ mode: "0600" });
        }
        step "Fails with it" { old.run("echo \"$KEY\" >&2; exit 1", #{ env: #{ KEY: key } }); }
    "#;
    std::fs::write(p.path().join("runbooks/leak.rhai"), script).unwrap();
    let mut screen = String::new();
    let mut run = |args: &[&str], code: i32| {
        let out = p.command(args).env("SHOP_API_KEY", SECRET).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        screen.push_str(&text);
    };
    run(&["run", "runbooks/leak.rhai", "--env", "demo"], 1);
    let id = p.newest();
    for args in [vec!["show", &id], vec!["log", &id], vec!["log", &id, "--json"], vec!["audit", "export", &id]] {
        run(&args, 0);
    }
    assert!(screen.contains("form [secret]"), "the command's output was not shown: {screen}");
    // Forms long enough that nothing innocent has them by chance.
    let python = "import sys,base64,urllib.parse,shlex,json\nk=sys.stdin.read()\nfor f in (k, base64.b64encode(k.encode()).decode()[:-2], base64.b64encode(('user:'+k).encode()).decode()[8:-4], urllib.parse.quote(k, safe=''), urllib.parse.quote_plus(k), shlex.quote(k), json.dumps(k, ensure_ascii=False)[1:-1], k.encode().hex()): print(f)\n";
    let mut child = std::process::Command::new("python3")
        .args(["-c", python])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), SECRET.as_bytes()).unwrap();
    let forms: Vec<String> = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().lines().map(str::to_string).collect();
    assert_eq!(forms.len(), 8);
    for f in &forms {
        assert!(!screen.contains(f.as_str()), "on the screen: {f}\n{screen}");
    }
    // The file that the runbook was told to write is the one place where it belongs; a run that is not over keeps its supervisor's folder.
    assert_eq!(std::fs::read_to_string(p.host("old").join("kept/by-name")).unwrap(), SECRET);
    std::fs::remove_file(p.host("old").join("kept/by-name")).unwrap();
    let (mut found, mut kept) = (Vec::new(), Vec::new());
    leaks(p.path(), &forms, &mut found);
    leaks(&p.host("old").join(".runbook"), &forms, &mut kept);
    found.retain(|f| !kept.contains(f));
    assert_eq!(found, Vec::<String>::new());
}
