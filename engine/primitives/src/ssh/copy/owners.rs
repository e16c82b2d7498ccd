//! The names of owners: a list gives numbers, and each number's name is looked up once.
//!
//! `find` itself asks the host's databases for every entry anew, which took most of its time.

use std::collections::HashMap;
use std::sync::Arc;

use runbook_core::Result;
use runbook_core::primitive::Cx;

use super::manifest::Said;
use crate::ssh::{Exec, Session};

/// Prints the accounts that stand in the host's own files. What others know (LDAP, NIS) is asked for by number.
pub(super) const LOCAL: &str = "echo @users; cut -d : -f 1,3 /etc/passwd; echo @groups; cut -d : -f 1,3 /etc/group\n";

/// How the owners of a side are told.
pub(super) enum Owners {
    /// As they stand in the list.
    Numbers,
    /// By name, where there is one.
    Names(Box<Names>),
}

/// What is known of a host's accounts.
pub(super) struct Names {
    cx: Cx,
    session: Session,
    users: HashMap<String, String>,
    groups: HashMap<String, String>,
    known: HashMap<Arc<str>, Arc<str>>,
}

impl Owners {
    /// Those of the host that has printed [`LOCAL`].
    pub(super) fn named(cx: &Cx, session: &Session, said: &Said) -> Owners {
        Owners::Names(Box::new(Names {
            cx: cx.clone(),
            session: session.clone(),
            users: by_number(said.part("users")),
            groups: by_number(said.part("groups")),
            known: HashMap::new(),
        }))
    }

    /// The owner that the list gives as `number:number`.
    pub(super) async fn of(&mut self, numbers: &Arc<str>) -> Result<Arc<str>> {
        let Owners::Names(n) = self else { return Ok(numbers.clone()) };
        if let Some(known) = n.known.get(numbers) {
            return Ok(known.clone());
        }
        let (user, group) = numbers.split_once(':').unwrap_or((numbers, ""));
        n.ask(user, group).await?;
        let name = |of: &HashMap<String, String>, number: &str| of.get(number).cloned().unwrap_or_else(|| number.to_string());
        let owner: Arc<str> = format!("{}:{}", name(&n.users, user), name(&n.groups, group)).into();
        n.known.insert(numbers.clone(), owner.clone());
        Ok(owner)
    }
}

impl Names {
    /// Asks the host for those of the two that its files do not have.
    async fn ask(&mut self, user: &str, group: &str) -> Result<()> {
        let is_number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        let mut script = String::new();
        for (what, number, known) in [("passwd", user, &self.users), ("group", group, &self.groups)] {
            if !known.contains_key(number) && is_number(number) {
                script.push_str(&format!("echo @{what}; getent {what} {number} | cut -d : -f 1,3\n"));
            }
        }
        if script.is_empty() {
            return Ok(());
        }
        // A host without getent knows its files alone.
        let done = self.session.exec(&self.cx, Exec::new(format!("{{\n{script}}} 2>/dev/null; :"))).await?;
        let mut said = Said::default();
        String::from_utf8_lossy(&done.stdout).lines().for_each(|l| said.take(l));
        for (what, number, known) in [("passwd", user, &mut self.users), ("group", group, &mut self.groups)] {
            if let Some(name) = by_number(said.part(what)).remove(number) {
                known.insert(number.to_string(), name);
            }
        }
        Ok(())
    }
}

/// Lines of `name:number`; of several names of one number the first counts, as for the system itself.
fn by_number(lines: &str) -> HashMap<String, String> {
    let mut all = HashMap::new();
    for (name, number) in lines.lines().filter_map(|l| l.split_once(':')) {
        if !name.is_empty() && !name.starts_with(['+', '-', '#']) {
            all.entry(number.to_string()).or_insert_with(|| name.to_string());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts() {
        let all = by_number("root:0\ntoor:0\nwww-data:33\n+:\n+nis:7\n:5\nodd");
        assert_eq!((all.get("0").map(String::as_str), all.get("33").map(String::as_str), all.len()), (Some("root"), Some("www-data"), 2));
    }
}
