//! The stream from host to host: `mariabackup` on the primary's, `mbstream` on the other, joined here. Nothing of it is held but what is
//! on its way.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::connect::Server;
use super::super::flavour::Flavour;
use super::super::host;
use super::place::Place;
use super::{PACKAGE, TAKE, outside};
use crate::db::driver::Db;
use crate::ssh::{self, Channel, Exec, quote};

/// The program that copies and prepares.
pub(super) struct Tool {
    /// Its path.
    pub path: String,
}

impl Tool {
    /// Finds it on the host of a database, of the server's own series.
    pub(super) async fn find(cx: &Cx, db: &Db, flavour: &Flavour) -> Result<Tool> {
        let script =
            "for t in mariadb-backup mariabackup; do p=$(command -v $t) && { echo \"$p\"; $p --version 2>&1; exit 0; }; done; exit 127";
        let done = ssh::connect(cx, &db.host).await?.exec_again(cx, host::exec(db, script.into())).await?;
        let missing = |why: String| Error::new(Code::HOST_TOOL_MISSING, why).host(&db.host).hint(PACKAGE);
        if done.status != 0 {
            return Err(missing(format!("the host of \"{}\" has no mariabackup", db.name)));
        }
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let (path, version) = said.split_once('\n').unwrap_or((&said, ""));
        let is = Flavour::parse(version.split_once("server ").map_or("", |(_, v)| v));
        let series = |v: (u16, u16, u16)| (v.0, v.1);
        if series(is.version) != series(flavour.version) {
            let (a, b) = (series(is.version), series(flavour.version));
            return Err(missing(format!(
                "mariabackup on the host of \"{}\" is of {}.{}, and the server of {}.{}: it copies servers of its own series alone",
                db.name, a.0, a.1, b.0, b.1
            )));
        }
        Ok(Tool { path: path.to_string() })
    }
}

/// About how many bytes a copy of the data folder has.
pub(super) async fn size(cx: &Cx, db: &Db, data: &str) -> Result<u64> {
    let script = format!(
        "cd {} && [ -r ibdata1 ] || exit 3\nfor f in */*.isl *; do [ ! -e \"$f\" ] || case $f in *.isl) echo \"$f\"; exit 5 ;; *) [ ! -L \"$f\" ] || {{ echo \"$f\"; exit 5; }} ;; esac; done\n\
         du -sk -- */ ibdata* undo[0-9]* ib_logfile* aria_log* 2>/dev/null | awk '{{ n += $1 }} END {{ print n + 0 }}'",
        quote(data)
    );
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, host::exec(db, script)).await?;
    let said = String::from_utf8_lossy(&done.stdout).trim().to_string();
    if done.status == 5 {
        return Err(outside(db, &said));
    }
    if done.status != 0 {
        return Err(Error::new(Code::DB_COPY, format!("the data folder {data} of \"{}\" cannot be read", db.name))
            .host(&db.host)
            .hint("its files must be readable for the login, or for root with sudo = true of the database"));
    }
    Ok(said.parse::<u64>().unwrap_or(0) * 1024)
}

/// Ends what an earlier try has left at work on a host.
pub(super) async fn end_leftover(cx: &Cx, db: &Db, tag: &str) -> Result<()> {
    let script = format!(
        "tag={}\nn=0\nwhile p=$(grep -lzxF \"RUNBOOK_COPY=$tag\" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3) && [ -n \"$p\" ]; do\n\
         if [ $n -lt 50 ]; then kill $p; else kill -9 $p; fi 2>/dev/null; n=$((n + 1)); [ $n -lt 100 ] || exit 4; sleep .1; done; exit 0",
        quote(tag)
    );
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, host::exec(db, script)).await?;
    if done.status != 0 {
        return Err(Error::new(
            Code::DB_COPY,
            format!("what an earlier copy has left at work on the host of \"{}\" does not end", db.name),
        )
        .host(&db.host)
        .retryable(true));
    }
    Ok(())
}

/// Copies the server of `primary`, whose data folder is `data`, into the folder beside that of `place`. How many bytes went over.
pub(super) async fn carry(
    cx: &Cx,
    db: &Db,
    (primary, at): (&Db, &Server),
    tool: &Tool,
    data: &str,
    place: &Place<'_>,
    total: u64,
) -> Result<u64> {
    let tag = quote(&place.tag());
    let own = primary.settings.str("defaults_file");
    let how = if own.is_some() { "--defaults-file" } else { "--defaults-extra-file" };
    let mut env = host::login(cx, at)?;
    if let (Some(file), Some((_, text))) = (own, env.first_mut()) {
        // Where the server finds its plugins and keys, the tool must find them too.
        *text = format!("!include {file}\n{text}");
    }
    let take = format!("d={}\ntool={}\nhow={how}\ntag={tag}\n{TAKE}", quote(data), quote(&tool.path));
    let put = format!(
        "n={}.runbook-new\numask 077\nrm -rf \"$n\" && mkdir \"$n\" || exit 1\nRUNBOOK_COPY={tag}\nexport RUNBOOK_COPY\nexec mbstream -x -C \"$n\"",
        quote(&place.dir)
    );
    let (there, here) = futures::try_join!(ssh::connect(cx, &primary.host), ssh::connect(cx, &db.host))?;
    let (from, to) = futures::try_join!(there.open(cx, Exec { env, ..host::exec(primary, take) }), here.open(cx, host::exec(db, put)))?;
    let Channel { stdin: hold, stdout: mut stream, done: taken } = from;
    let Channel { stdin: mut sink, stdout: mut said, done: written } = to;
    let what = format!("copying {} to {}", primary.name, db.name);
    let pump = async move {
        let (mut buffer, mut moved, mut told) = (vec![0u8; 256 << 10], 0u64, 0u64);
        loop {
            let n = stream.read(&mut buffer).await.unwrap_or(0);
            let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
            if sink.write_all(piece).await.is_err() {
                break;
            }
            moved += n as u64;
            if moved - told >= 4 << 20 {
                told = moved;
                cx.progress(what.clone(), moved, Some(total.max(moved)), "bytes");
            }
        }
        // Both go: whichever side has ended, the other must not wait for it.
        let _ = sink.shutdown().await;
        drop((stream, hold));
        moved
    };
    let drain = async {
        let mut rest = Vec::new();
        let _ = said.read_to_end(&mut rest).await;
    };
    let together = async { tokio::join!(pump, taken, written, drain) };
    let (moved, taken, written, ()) = tokio::select! {
        all = together => all,
        () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, format!("stopped while copying {} to {}", primary.name, db.name))),
    };
    let failed = |of: &Db, what: &str, status: i32, said: &str| {
        let said = if said.trim().is_empty() { "it broke off".to_string() } else { cx.redactor.text(said.trim()).replace('\n', "; ") };
        Error::new(
            Code::DB_COPY,
            format!("the copy of \"{}\" to \"{}\" failed: {what} ended with status {status}: {said}", primary.name, db.name),
        )
        .host(&of.host)
        .retryable(status > 128)
    };
    let (status, said) = written?;
    if let Some(e) = place.full(&said) {
        return Err(e);
    }
    // A stream that was cut short is the end of the one who writes it, who says why.
    let (taking, complaint) = taken?;
    if taking != 0 && (status == 0 || !complaint.trim().is_empty() && !complaint.contains("Broken pipe")) {
        return Err(failed(primary, "mariabackup", taking, &complaint));
    }
    if status != 0 {
        return Err(failed(db, "mbstream", status, &said));
    }
    Ok(moved)
}
