//! Restoring, as a test and for good, with the tool, as a person would do it by hand.

use runbook_core::inventory::Section;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Kept, Tool};
use crate::backup::on_host::{Faults, differences, remove_quietly, safe, said};
use crate::backup::pipe::pipe;
use crate::backup::repository::{Restored, Snapshot};
use crate::ssh::{Exec, connect, quote};

impl<T: Tool> Kept<T> {
    pub(super) async fn try_restore(&self, cx: &Cx, s: &Snapshot, host: &str, compare: bool) -> Result<Restored> {
        if compare {
            // One that was made by hand has the machine's own name of itself. Seen before all of it is restored.
            cx.env.resource(Section::Hosts, &s.host).map_err(|e| {
                let why =
                    format!("the snapshot {} was made on \"{}\", and cannot be compared with what is there: {}", s.id, s.host, e.message);
                Error { message: why, ..e }.hint("without compare it is tested by itself; to compare, name that host so in runbook.toml")
            })?;
        }
        // Named by the action, so that what a crash left is found and removed by the next attempt.
        let folder = format!("\"${{TMPDIR:-/tmp}}\"/runbook-restore.{}", cx.action_id);
        let sudo = self.settings.flag("sudo");
        remove_quietly(cx, host, &folder, sudo).await;
        let tested = self.test_in(cx, s, host, &folder, compare).await;
        remove_quietly(cx, host, &folder, sudo).await;
        tested
    }

    async fn test_in(&self, cx: &Cx, s: &Snapshot, host: &str, folder: &str, compare: bool) -> Result<Restored> {
        let what = format!("the restore test of the snapshot {} failed", s.id);
        let mut s = s.clone();
        self.count(cx, host, &mut s).await?;
        let script = format!(
            "umask 077; mkdir {folder} && bring {id} {folder} || exit\n\
             find {folder} -type f -printf '%s %i %n\\n' |\n\
             awk '{{ n++; a += $1; if ($3 == 1 || !seen[$2]++) o += $1 }} END {{ printf \"%d %.0f %.0f\\n\", n, a, o }}'",
            id = quote(&s.id)
        );
        let done = self.must(cx, host, &script, Code::BACKUP_RESTORE, &what).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let is: Vec<&str> = text.split_whitespace().collect();
        // A tool that tells further names of a file from files counts their bytes once.
        let (names, bytes) = (s.files + s.links, if s.links == 0 { is.get(1) } else { is.get(2) });
        if is.first() != Some(&names.to_string().as_str()) || bytes != Some(&s.bytes.to_string().as_str()) {
            let is = format!("{} and {}", is.first().unwrap_or(&"?"), bytes.unwrap_or(&"?"));
            return Err(Error::new(
                Code::BACKUP_RESTORE,
                format!("{what}: files and bytes are {is}, and should be {names} and {}", s.bytes),
            )
            .host(host)
            .hint("verify the snapshot, and see the space on this host"));
        }
        if compare {
            self.compare(cx, &s, host, folder).await?;
        }
        Ok(Restored { files: names, bytes: s.bytes })
    }

    /// Compares what was restored with what is on the source host now, by SHA-256.
    async fn compare(&self, cx: &Cx, s: &Snapshot, host: &str, folder: &str) -> Result<()> {
        // A snapshot of relative paths may be listed with absolute ones, and holds them without what was above them: found by where the
        // first one came back.
        let first = s.paths.first().map_or("/", String::as_str);
        let script = format!(
            "p={first}; r=\ncase $p in /*) ;; *) [ -e {folder}/\"$p\" ] && echo .; exit ;; esac\nwhile ! [ -e {folder}\"$p\" ] && [ -n \"$p\" ]; do p=${{p#/}}; case $p in */*) r=$r/${{p%%/*}}; p=/${{p#*/}} ;; *) p= ;; esac; done\n\
             [ -n \"$p\" ] && printf '%s\\n' \"${{r:-/}}\"",
            first = quote(first.trim_start_matches("./"))
        );
        let done = self.run(cx, host, &script).await?;
        let root = String::from_utf8_lossy(&done.stdout).trim_end_matches('\n').to_string();
        let e = |why: String, at: &str| Error::new(Code::BACKUP_RESTORE, why).host(at);
        if done.status != 0 || root.is_empty() {
            return Err(e(format!("{first} is not in the snapshot {}", s.id), host));
        }
        let sums = self.exec(cx, &format!("cd {folder} && exec find . -type f -exec sha256sum -b {{}} +"), false)?;
        let from = connect(cx, host).await?.open(cx, sums).await?;
        let check = format!("LC_ALL=C; export LC_ALL; cd {} && exec sha256sum -c --quiet --strict -", quote(&root));
        let to = connect(cx, &s.host).await?.open(cx, Exec { sudo: self.settings.flag("sudo"), ..Exec::new(check) }).await?;
        let done = pipe(cx, "comparing with the source", None, from, to).await?;
        if done.to.0 == 0 && done.from.as_ref().is_some_and(|f| f.0 == 0) {
            return Ok(());
        }
        let list = differences(&done.said).show().unwrap_or_else(|| said(&done.to.1)).replace("./", "");
        Err(e(format!("the snapshot {} restores, but is not what is on the host now: {list}", s.id), &s.host)
            .hint("take a new snapshot if these files matter"))
    }

    pub(super) async fn bring_back(&self, cx: &Cx, s: &Snapshot, host: &str, dest: &str, sudo: bool) -> Result<bool> {
        let folder = quote(&safe(if dest.is_empty() { "." } else { dest }));
        if self.differs(cx, s, host, &folder, sudo).await?.is_none() {
            return Ok(false);
        }
        let script = format!("mkdir -p {folder} || exit\nbring_over {} {folder}", quote(&s.id));
        let what = format!("the restore of the snapshot {} failed", s.id);
        let done = connect(cx, host).await?.exec_again(cx, self.exec(cx, &script, sudo)?).await?;
        if done.status != 0 {
            return Err(self.fault(host, Code::BACKUP_RESTORE, &what, &done));
        }
        match self.differs(cx, s, host, &folder, sudo).await? {
            None => Ok(true),
            Some(list) => Err(Error::new(Code::BACKUP_RESTORE, format!("{what}: {list}"))
                .host(host)
                .hint("something else writes there, or not all could be brought back; restore it into an empty folder")),
        }
    }

    /// How a folder differs from a snapshot: contents, sizes, kinds, permissions, and owners where the login can give them. Such a tar
    /// has whole seconds, so that times say nothing.
    async fn differs(&self, cx: &Cx, s: &Snapshot, host: &str, folder: &str, sudo: bool) -> Result<Option<String>> {
        let script = format!(
            "[ -d {folder} ] || {{ echo 'the folder is not there'; echo 'status 0'; exit 0; }}\n\
             o='Mod time differs'; [ \"$(id -u)\" = 0 ] || o='(Mod time|Uid|Gid) differs'\n\
             {{ {{ tar_of {id}; echo \"status $?\" >&3; }} | tar --diff --file=- --directory={folder} 2>&1 |\n\
             grep -Ev \": $o\\$|^tar: Exiting\" | head -n 1000; }} 3>&1",
            id = quote(&s.id)
        );
        let done = connect(cx, host).await?.exec_again(cx, self.exec(cx, &script, sudo)?).await?;
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        let mut faults = Faults::new();
        let mut whole = false;
        for line in out.lines() {
            match line.strip_prefix("status ") {
                Some(status) => whole = status == "0",
                None => faults.add(|| line.trim_start_matches("tar: ").to_string()),
            }
        }
        if !whole && faults.show().is_none() {
            return Err(self.fault(host, Code::BACKUP_RESTORE, &format!("the snapshot {} cannot be read", s.id), &done));
        }
        Ok(faults.show())
    }
}
