//! A copy from its beginning to its end: compare, refuse, remove, carry, check, and again when the source has changed meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::time::Duration;

use runbook_core::primitive::Outcome;
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Record, Result, Value};

use super::blocks::Patch;
use super::diff::{Diff, compare};
use super::direct::{Attempt, Direction};
use super::manifest::{Entry, list, shown};
use super::verify::{Passing, Paths};
use super::{Job, Tool, Via, blocks, clean, direct, failure, relay, remove, tools, verify};
use crate::ssh::files::dashed;
use crate::ssh::{Exec, quote};

/// How often a source that changes is looked at again.
const ROUNDS: usize = 5;
/// How often a copy goes on after its connection was lost.
const RECONNECTS: u32 = 4;

/// More than a tick of any clock that stamps files.
const TICK: Duration = Duration::from_millis(15);

/// The longest round trip to a host in the same network.
const NEAR: Duration = Duration::from_millis(2);
/// What such a network carries in about half a second.
const QUICK: u64 = 64 << 20;

/// What a copy has done so far.
#[derive(Default)]
struct Done {
    changed: bool,
    files: u64,
    bytes: u64,
    sent: u64,
    deleted: u64,
    way: Option<(Via, Tool)>,
    /// Files that changed meanwhile and are left so.
    changing: Vec<String>,
}

/// How the files of one round went over.
pub(super) struct Sent {
    pub bytes: u64,
    pub via: Via,
    pub tool: Tool,
    /// Files whose blocks were compared on the way.
    pub compared: Paths,
    /// Files that have not come as they are.
    pub failed: Paths,
    /// What has passed through the controller, where it was summed as it passed.
    pub passed: Option<Passing>,
}

/// What is carried, and by what.
pub(super) struct Load<'a> {
    /// What goes whole.
    pub diff: &'a Diff,
    /// What goes in blocks, before the rest.
    pub patches: &'a [Patch],
    pub tool: Tool,
    pub tools: tools::Tools,
    /// Whether files are carried that look equal.
    pub forced: bool,
}

impl Load<'_> {
    /// What the tool is to carry, as it reads it.
    pub(super) fn names(&self) -> Vec<u8> {
        // Named to rsync, the folder itself would mean all that is in it as well.
        list(self.diff.copy.iter().filter(|e| self.tool == Tool::Tar || !e.path.is_empty()))
    }

    /// What `tar` sends, as shell text; the names come from `list`.
    pub(super) fn pack(&self, job: &Job<'_>, list: &str) -> String {
        blocks::send(self.patches) + &tools::pack(job, self.diff, self.tools, list)
    }

    /// What takes it on the target, in the target's folder.
    pub(super) fn unpack(&self, job: &Job<'_>) -> String {
        blocks::receive(self.patches) + &tools::unpack(job, self.tools)
    }
}

impl Job<'_> {
    pub(super) async fn run(&self) -> Result<Outcome> {
        let mut partials = BTreeMap::new();
        let ended = self.rounds(&mut partials).await;
        self.tidy().await;
        // What came of files that took another way in the end, or have gone, is of no use any more.
        if ended.is_ok()
            && let Err(e) = remove::partials(self, partials.values()).await
        {
            self.cx.message(format!("what an earlier copy has left in {} could not be removed: {}", self.target, e.message));
        }
        ended
    }

    /// Takes back what transfers have put on hosts, once they are over.
    pub(super) async fn tidy(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        if !left.is_empty() {
            clean::tidy(self.cx, &left.iter().collect::<Vec<_>>()).await;
        }
    }

    /// Until all is there. The folders of what broken copies have left are added to `partials`.
    async fn rounds(&self, partials: &mut BTreeMap<Box<[u8]>, Entry>) -> Result<Outcome> {
        let mut done = Done::default();
        let mut forced = Paths::new();
        let mut lost = 0;
        let mut round = 0;
        let mut left = u64::MAX;
        let mut equal = 0;
        while round < ROUNDS {
            let mut diff = compare(self, &forced).await?;
            partials.extend(diff.partials.iter().map(|e| (e.path.clone(), e.clone())));
            if round == 0 && diff.left_out > 0 && lost == 0 {
                self.cx.message(format!("{} sockets, pipes or devices in {} are left out", diff.left_out, self.source));
            }
            forced.extend(self.by_content(&mut diff).await?);
            equal = diff.equal;
            if diff.is_nothing() {
                return Ok(self.outcome(&done, diff.equal));
            }
            self.refuse(&diff)?;
            done.changed = true;
            let goes: BTreeSet<&[u8]> = diff.surplus.iter().map(|e| &*e.path).collect();
            remove::partials(self, diff.partials.iter().filter(|p| goes.contains(p.parent()))).await?;
            remove::remove(self, diff.conflicts.iter().chain(&diff.surplus).collect()).await?;
            done.deleted += diff.surplus.len() as u64;
            if diff.copy.is_empty() {
                return Ok(self.outcome(&done, diff.equal));
            }
            let (sent, sums) = match self.carry_and_sum(&diff, !forced.is_empty()).await {
                Err(e) if e.code == Code::SSH_LOST && lost < RECONNECTS => {
                    self.tidy().await;
                    // What has come is there: the next comparison finds what is still missing.
                    self.cx.message(format!("{}; going on from what has come so far", e.message));
                    self.cx.sleep(Duration::from_secs(1 << lost)).await?;
                    lost += 1;
                    continue;
                }
                Err(e) if e.code == Code::FILE_READ && e.retryable => {
                    self.tidy().await;
                    round += 1;
                    continue;
                }
                other => other?,
            };
            done.files += diff.copy.len() as u64;
            done.bytes += diff.bytes;
            done.sent += sent.bytes;
            done.way = Some((sent.via, sent.tool));
            let verify = async {
                match sums {
                    _ if self.o.sizes_only => verify::sizes(self, &diff.copy).await,
                    Some(sums) => verify::copied(self, &diff, sums, &sent.compared).await,
                    None => verify::sums(self, &diff.copy).await,
                }
            };
            let (verdict, ()) = tokio::join!(verify, self.tidy());
            let mut verdict = verdict?;
            verdict.differ.extend(sent.failed);
            if diff.more && verdict.differ.is_empty() && diff.differ < left {
                left = diff.differ;
                forced.clear();
                continue;
            }
            if verdict.differ.is_empty() && !verdict.vanished {
                // Everything that differed when the lists were made is there now, byte by byte.
                return Ok(self.outcome(&done, diff.equal));
            }
            forced = verdict.differ;
            if self.o.accept_changing {
                break;
            }
            round += 1;
        }
        if self.o.accept_changing {
            self.unfinished(&forced).await?;
            done.changing = forced.iter().map(|p| shown(p)).collect();
            return Ok(self.outcome(&done, equal));
        }
        let named: Vec<String> = forced.iter().take(5).map(|p| shown(p)).collect();
        let named = if named.is_empty() {
            "files come and go".to_string()
        } else {
            format!("after {ROUNDS} tries these still differ: {}", named.join(", "))
        };
        Err(Error::new(
            Code::FILE_CHECKSUM,
            format!("{} on {} changes faster than it can be copied; {named}", self.source, self.from.name()),
        )
        .host(self.to.name())
        .retryable(true)
        .hint("stop what writes there, or leave the files that change out with exclude")
        .detail("paths", forced.iter().map(|p| shown(p)).collect::<Vec<_>>().join("\n")))
    }

    /// Marks files on the target as not the source's: the next copy takes them again, whatever their size and time happen to be there.
    async fn unfinished(&self, files: &Paths) -> Result<()> {
        let stdin: Vec<u8> = files.iter().flat_map(|p| [b"./", &**p, b"\0"].concat()).collect();
        let script = format!("cd -- {} || exit 96\nxargs -0 -r touch -c -t 197001010000", quote(&dashed(self.target)));
        let done = self.to.exec(self.cx, Exec { sudo: self.o.sudo, stdin: Some(stdin), ..Exec::new(script) }).await?;
        if done.status == 0 {
            return Ok(());
        }
        Err(failure::transfer(&self.sides(), failure::Side::To, &String::from_utf8_lossy(&done.stderr), done.status))
    }

    /// With `checksum`: moves the files that look equal and are not to those that are to be copied.
    pub(super) async fn by_content(&self, diff: &mut Diff) -> Result<Paths> {
        let look_equal = std::mem::take(&mut diff.look_equal);
        if look_equal.is_empty() {
            return Ok(Paths::new());
        }
        let differ = verify::sums(self, &look_equal).await?.differ;
        for e in look_equal.into_iter().filter(|e| differ.contains(&e.path)) {
            diff.equal -= 1;
            diff.all_bytes += e.size;
            diff.differ += 1;
            diff.there.insert(e.path.clone(), e.size);
            diff.copy.push(e);
        }
        diff.complete();
        Ok(differ)
    }

    /// Refuses what must not begin.
    fn refuse(&self, diff: &Diff) -> Result<()> {
        if let Some(e) = diff.conflicts.iter().find(|e| e.kind == b'd')
            && !self.o.delete
        {
            return Err(Error::new(
                Code::FILE_WRITE,
                format!("{}/{} is a folder, and a file on {}", self.target, e.shown(), self.from.name()),
            )
            .host(self.to.name())
            .hint("remove it first, or allow it with #{ delete: true }"));
        }
        remove::within_limit(self, diff.surplus.len() as u64, diff.target)?;
        let short = |what: String| {
            Err(Error::new(Code::DISK_SPACE, format!("{} has no room for the copy: {what}", self.target))
                .host(self.to.name())
                .hint("make room there, leave things out with exclude, or begin all the same with #{ check_space: false }"))
        };
        match diff.room {
            (Some(room), _) if diff.needs > room && !self.o.any_room => {
                short(format!("it needs {} more, and {} are free", show_bytes(diff.needs), show_bytes(room)))
            }
            (_, Some(room)) if diff.new > room && !self.o.any_room => {
                short(format!("it needs {} more files, and its file system takes {room}", diff.new))
            }
            _ => Ok(()),
        }
    }

    /// Carries the files, and sums them on the source meanwhile where that is worth a connection of its own.
    async fn carry_and_sum(&self, diff: &Diff, forced: bool) -> Result<(Sent, Option<verify::Sums>)> {
        let of = |host| tools::known(self.cx, host, self.o.sudo).unwrap_or_default();
        let both = tools::both(of(&self.from), of(&self.to));
        let mut tool = tools::choose(self, diff, both, forced)?;
        if let Some(early) = diff.heard.and_then(|at| TICK.checked_sub(at.elapsed())) {
            // The clock of files lags by a tick: what changes once content is read must bear a time after the one that was heard.
            self.cx.sleep(early).await?;
        }
        let mut patches = Vec::new();
        let of_our_own = both.tar && both.coreutils && both.python && blocks::suit(diff);
        if tool == Tool::Rsync && self.o.tool.is_none() && self.o.bandwidth.is_none() && of_our_own {
            // One reading of both sides is the comparison and the check; rsync reads them as well, and what it wrote is read again.
            let found = blocks::find(self, diff, true).await?.filter(|found| blocks::worth(diff, found));
            match found {
                Some(found) => (tool, patches) = (Tool::Tar, found),
                None => blocks::forget(self, diff).await?,
            }
        } else if tool == Tool::Tar && both.coreutils {
            patches = match blocks::find(self, diff, both.python).await? {
                Some(found) => found,
                None => blocks::find(self, diff, false).await?.unwrap_or_default(),
            };
        }
        let in_blocks: HashMap<&[u8], u64> = patches.iter().map(|p| (&*p.entry.path, p.bytes())).collect();
        let size = |e: &Entry| in_blocks.get(&*e.path).copied().unwrap_or(if e.is_file() && e.same_as.is_none() { e.size } else { 0 });
        let whole = Diff {
            bytes: diff.copy.iter().map(size).sum(),
            copy: diff.copy.iter().filter(|e| !in_blocks.contains_key(&*e.path)).cloned().collect(),
            owners: diff.owners,
            ..Diff::default()
        };
        let load = Load { diff: &whole, patches: &patches, tool, tools: both, forced };
        let compared: Paths = patches.iter().filter(|p| p.compared()).map(|p| p.entry.path.clone()).collect();
        let files = verify::files(&diff.copy, &compared);
        let via = self.way(&load).await;
        let summed = !self.o.sizes_only && !tools::is_small(diff);
        let passing = (summed && via == Via::Controller && tool == Tool::Tar && patches.is_empty()).then(Passing::new);
        let aside = summed && passing.is_none();
        let carry = self.carry(diff, &load, via, passing);
        let (mut sent, mut sums) = if aside {
            let (mut carry, mut summing) = (pin!(carry), pin!(verify::source(self, &files)));
            tokio::select! {
                // A transfer that has failed has no use for sums; sums that could not be had are made afterwards.
                sent = &mut carry => (sent?, summing.await.ok()),
                sums = &mut summing => (carry.await?, sums.ok()),
            }
        } else {
            (carry.await?, None)
        };
        if let Some(passed) = sent.passed.take() {
            sums = passed.sums(&files);
        }
        sent.compared = compared;
        Ok((sent, sums))
    }

    /// Carries the files by the best way that there is.
    async fn carry(&self, diff: &Diff, load: &Load<'_>, via: Via, passing: Option<Passing>) -> Result<Sent> {
        let whole = load.diff;
        let own = whole.copy.first().filter(|e| load.tool == Tool::Rsync && e.path.is_empty());
        let mut sent = Sent { bytes: 0, via: Via::Controller, tool: load.tool, compared: Paths::new(), failed: Paths::new(), passed: None };
        if own.is_none() || whole.copy.len() > 1 {
            (sent.bytes, sent.via, sent.passed) = self.best_way(load, via, passing).await?;
        }
        let mut last: BTreeMap<&[u8], Entry> = own.into_iter().map(|e| (&*e.path, e.clone())).collect();
        if !load.patches.is_empty() {
            sent.failed = blocks::finish(self, load).await?;
            let touched = load.patches.iter().map(|p| p.entry.parent()).chain([&b""[..]]);
            last.extend(touched.filter_map(|p| Some((p, diff.folders.get(p)?.clone()))));
        }
        if !last.is_empty() {
            // The time of change of a folder comes last and alone.
            let alone = Diff { copy: last.into_values().collect(), owners: diff.owners, ..Diff::default() };
            sent.bytes += relay::tar(self, &Load { diff: &alone, patches: &[], tool: Tool::Tar, ..*load }, &mut None).await?;
        }
        Ok(sent)
    }

    /// Whether the controller is so near to both hosts, and the archive so small, that it has passed through here before one host had
    /// logged in to the other. Who says how the hosts reach each other wants them to.
    async fn is_near(&self, load: &Load<'_>) -> bool {
        let told = self.o.to_address.is_some() || self.o.from_address.is_some();
        load.tool == Tool::Tar && load.diff.bytes <= QUICK && !told && self.from.is_within(NEAR).await && self.to.is_within(NEAR).await
    }

    /// The way that is tried first.
    async fn way(&self, load: &Load<'_>) -> Via {
        match self.o.via {
            Some(via) => via,
            None if tools::is_small(load.diff) || self.is_near(load).await => Via::Controller,
            None => Via::Direct,
        }
    }

    /// How much went over, which way, and what has passed through here.
    async fn best_way(&self, load: &Load<'_>, via: Via, mut passing: Option<Passing>) -> Result<(u64, Via, Option<Passing>)> {
        let able = |host| tools::known(self.cx, host, self.o.sudo).unwrap_or_default().ssh;
        if via == Via::Direct {
            let mut why = Vec::new();
            for (direction, able) in [(Direction::Push, able(&self.from)), (Direction::Pull, able(&self.to))] {
                match direct::attempt(self, load, direction, able).await? {
                    Attempt::Done(bytes) => return Ok((bytes, Via::Direct, None)),
                    Attempt::NoWay(reason) => why.push(reason),
                }
            }
            let why = why.join("; ");
            if self.o.via == Some(Via::Direct) {
                return Err(Error::new(Code::SSH_CONNECT, format!("{} and {} cannot copy to each other: {why}", self.from.name(), self.to.name()))
                    .host(self.to.name())
                    .hint("leave out via: then the files go through the controller; set from_address or to_address when they know each other by another address"));
            }
            self.cx.message(format!("the files go through the controller, since the hosts cannot copy to each other: {why}"));
        }
        let bytes = match load.tool {
            Tool::Rsync => relay::rsync(self, load).await?,
            Tool::Tar => relay::tar(self, load, &mut passing).await?,
        };
        Ok((bytes, Via::Controller, passing))
    }

    fn outcome(&self, done: &Done, equal: u64) -> Outcome {
        let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let (via, tool) = done.way.map_or(("", ""), |(v, t)| (v.name(), t.name()));
        let result = Record::new(
            "FileCopy",
            [
                ("files", int(done.files)),
                ("bytes", Value::Bytes(done.bytes)),
                ("sent", Value::Bytes(done.sent)),
                ("deleted", int(done.deleted)),
                ("equal", int(equal)),
                ("via", via.into()),
                ("tool", tool.into()),
                ("changing", Value::List(done.changing.iter().map(|p| p.as_str().into()).collect())),
            ],
        );
        if !done.changed {
            return Outcome::unchanged(result, format!("both are equal: {equal} files and folders"));
        }
        let way = match done.way {
            Some((Via::Direct, tool)) => format!(" by {} from host to host", tool.name()),
            Some((Via::Controller, tool)) => format!(" by {} through the controller", tool.name()),
            None => String::new(),
        };
        let mut note = format!(
            "{} copied ({}, {} sent{way}), {} deleted, {equal} equal",
            done.files,
            show_bytes(done.bytes),
            show_bytes(done.sent),
            done.deleted
        );
        if !done.changing.is_empty() {
            note.push_str(&format!(", {} changed meanwhile", done.changing.len()));
        }
        Outcome::changed(result).note(note)
    }
}
