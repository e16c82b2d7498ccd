//! Accounts and grants: listed without their hashes, copied with them from server to server.

use std::collections::BTreeMap;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::connect::{Sess, get, server, session};
use super::flavour::Flavour;
use super::sql::text;
use super::state::aside;
use crate::db::driver::{Account, AccountsCopied, Db};

/// Accounts that servers make for themselves.
const SYSTEM: [&str; 9] =
    ["mariadb.sys", "mysql.sys", "mysql.session", "mysql.infoschema", "mysql", "root", "debian-sys-maint", "PUBLIC", "healthcheck"];

/// An account's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// User or role.
    pub user: String,
    /// Host; empty for a role of MariaDB.
    pub host: String,
    /// As SQL and as people see it: `'shop'@'%'`.
    pub shown: String,
    /// Whether it is a role of MariaDB.
    pub role: bool,
}

/// Every account that is not the system's or ours, but for those that the server ignores: it has no names of hosts when it resolves none.
pub async fn names(s: &mut Sess, flavour: &Flavour) -> Result<Vec<Name>> {
    let is_role = if flavour.maria { "is_role" } else { "'N'" };
    let known = "@@skip_name_resolve = 0 OR host IN ('', 'localhost') OR host REGEXP '^[0-9a-fA-F:.%_/]+$'";
    let rows = s.rows(format!("SELECT user AS u, host AS h, {is_role} AS r FROM mysql.user WHERE {known} ORDER BY 1, 2")).await?;
    Ok(rows
        .iter()
        .map(|r| (get(r, "u").to_string(), get(r, "h").to_string(), get(r, "r") == "Y"))
        .filter(|(u, h, _)| !u.starts_with("_runbook") && !(SYSTEM.contains(&u.as_str()) && (u != "root" || is_local(h))))
        .map(|(user, host, role)| {
            let shown = if role { text(&user) } else { format!("{}@{}", text(&user), text(&host)) };
            Name { user, host, shown, role }
        })
        .collect())
}

fn is_local(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "::1")
}

/// The statements that make an account what it is: the first makes or changes the login, the others grant.
async fn definition(s: &mut Sess, flavour: &Flavour, name: &Name) -> Result<Vec<String>> {
    let mut out = Vec::new();
    if name.role {
        out.push(format!("CREATE ROLE {}", name.shown));
    } else {
        let made = if flavour.alters_users() {
            s.text(format!("SHOW CREATE USER {}", name.shown)).await?.unwrap_or_default()
        } else {
            let of = format!("FROM mysql.user WHERE user = {} AND host = {}", text(&name.user), text(&name.host));
            let rows = s.rows(format!("SELECT plugin AS p, password AS h, COALESCE(authentication_string, '') AS a {of}")).await?;
            rows.first().map(|r| created(&name.shown, get(r, "p"), get(r, "h"), get(r, "a"))).unwrap_or_default()
        };
        out.push(made);
        // What MySQL shows of a grant has no password in it; what MariaDB shows repeats it.
    }
    let default_role = |g: &str| g.starts_with("SET DEFAULT ROLE");
    for grant in s.column(format!("SHOW GRANTS FOR {}", name.shown)).await? {
        let grant = without_password(&grant);
        // Also the membership of roles is shown with roles of the role: only what is its own.
        if name.role && !grant.contains(&format!("TO `{}`", name.user)) && !grant.contains(&format!("TO '{}'", name.user)) {
            continue;
        }
        out.push(grant);
    }
    out.sort_by_key(|g| (!g.starts_with("CREATE"), default_role(g), !g.starts_with("GRANT `") && !g.starts_with("GRANT '")));
    Ok(out)
}

/// `CREATE USER` of a server that does not show it itself, from its own table.
fn created(shown: &str, plugin: &str, hash: &str, auth: &str) -> String {
    match (plugin, hash) {
        ("" | "mysql_native_password" | "mysql_old_password", "") => format!("CREATE USER {shown}"),
        ("" | "mysql_native_password" | "mysql_old_password", hash) => format!("CREATE USER {shown} IDENTIFIED BY PASSWORD {}", text(hash)),
        (plugin, _) => format!("CREATE USER {shown} IDENTIFIED WITH {} AS {}", text(plugin), text(auth)),
    }
}

/// A grant without the password that MariaDB repeats in it.
fn without_password(grant: &str) -> String {
    let Some(at) = grant.find(" IDENTIFIED ") else { return grant.to_string() };
    let (head, tail) = grant.split_at(at);
    // What follows the password: REQUIRE and WITH, outside of quotes.
    let mut quoted = false;
    let mut end = tail.len();
    for (i, c) in tail.char_indices() {
        if c == '\'' {
            quoted = !quoted;
        }
        if !quoted && (tail.get(i..).is_some_and(|t| t.starts_with(" REQUIRE ") || t.starts_with(" WITH "))) {
            end = i;
            break;
        }
    }
    format!("{head}{}", tail.get(end..).unwrap_or(""))
}

/// `CREATE USER` as the statements that make an account that exists the same.
fn altering(flavour: &Flavour, shown: &str, create: &str) -> Vec<String> {
    if flavour.alters_users() {
        return vec![create.replacen("CREATE USER", "ALTER USER", 1)];
    }
    match create.split_once(" IDENTIFIED BY PASSWORD ") {
        Some((_, hash)) => vec![format!("SET PASSWORD FOR {shown} = {hash}")],
        None if create.contains(" IDENTIFIED WITH ") => vec![format!("DROP USER {shown}"), create.to_string()],
        None => vec![format!("SET PASSWORD FOR {shown} = ''")],
    }
}

pub async fn accounts(cx: &Cx, db: &Db) -> Result<Vec<Account>> {
    let at = server(cx, db).await?;
    let mut s = session(cx, db).await?;
    let mut out = Vec::new();
    for name in names(&mut s, &at.flavour).await? {
        let all = definition(&mut s, &at.flavour, &name).await?;
        let made = all.first().map_or("", String::as_str);
        let locked = made.contains("ACCOUNT LOCK");
        let grants: Vec<String> = all.iter().skip(1).cloned().collect();
        let superuser = grants.iter().any(|g| g.contains("ALL PRIVILEGES ON *.*") || g.contains("SUPER") && g.contains(" ON *.*"));
        out.push(Account { name: name.shown.clone(), login: !name.role && !locked, superuser, grants });
    }
    s.close().await;
    Ok(out)
}

/// Copies accounts; outside of the target's binary log with `aside_only`, as a replica wants it.
pub async fn copy(cx: &Cx, from: &Db, to: &Db, only: &[String], keep_out_of_log: bool) -> Result<AccountsCopied> {
    let (a, b) = (server(cx, from).await?, server(cx, to).await?);
    let (mut s, mut t) = (session(cx, from).await?, session(cx, to).await?);
    let theirs = names(&mut s, &a.flavour).await?;
    let unknown: Vec<&String> = only.iter().filter(|o| !theirs.iter().any(|n| &n.shown == *o)).collect();
    if let Some(name) = unknown.first() {
        return Err(Error::new(Code::DB_QUERY, format!("\"{}\" has no account {name}", from.name))
            .host(&from.host)
            .hint("accounts() shows their names"));
    }
    let ours = names(&mut t, &b.flavour).await?;
    let mut wanted: BTreeMap<(bool, Name), Vec<String>> = BTreeMap::new();
    for name in theirs.into_iter().filter(|n| only.is_empty() || only.contains(&n.shown)) {
        let d = definition(&mut s, &a.flavour, &name).await?;
        // Roles first: accounts are given them.
        wanted.insert((!name.role, name), d);
    }
    let mut done = AccountsCopied::default();
    for ((_, name), want) in wanted {
        // Hashes are secrets: whatever shows a statement from here on must not show them.
        for hash in want.iter().flat_map(|w| w.split('\'')).filter(|p| p.starts_with('*') || p.starts_with('$') || p.len() > 30) {
            cx.redactor.add(hash);
        }
        let have = if ours.iter().any(|o| o.shown == name.shown) { Some(definition(&mut t, &b.flavour, &name).await?) } else { None };
        let statements: Vec<String> = match &have {
            Some(have) if *have == want => {
                done.equal.push(name.shown.clone());
                continue;
            }
            Some(have) => {
                done.changed.push(name.shown.clone());
                let revoke = (have.get(1..) != want.get(1..)).then(|| format!("REVOKE ALL PRIVILEGES, GRANT OPTION FROM {}", name.shown));
                let login =
                    (!name.role).then(|| altering(&b.flavour, &name.shown, want.first().map_or("", String::as_str))).into_iter().flatten();
                login.chain(revoke).chain(want.iter().skip(1).cloned()).collect()
            }
            None => {
                done.created.push(name.shown.clone());
                want.clone()
            }
        };
        let run = if keep_out_of_log {
            aside(&mut t, &statements).await
        } else {
            let mut r = Ok(());
            for sql in &statements {
                r = t.run(sql).await.map(drop);
                if r.is_err() {
                    break;
                }
            }
            r
        };
        run.map_err(|e| Error { message: format!("account {}: {}", name.shown, cx.redactor.text(&e.message)), ..e })?;
    }
    s.close().await;
    t.close().await;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_lose_their_password_and_nothing_else() {
        assert_eq!(
            without_password("GRANT USAGE ON *.* TO `shop`@`%` IDENTIFIED BY PASSWORD '*A B WITH C' REQUIRE SSL WITH GRANT OPTION"),
            "GRANT USAGE ON *.* TO `shop`@`%` REQUIRE SSL WITH GRANT OPTION"
        );
        assert_eq!(without_password("GRANT ALL ON *.* TO `a`@`b` IDENTIFIED VIA unix_socket"), "GRANT ALL ON *.* TO `a`@`b`");
        assert_eq!(without_password("GRANT SELECT ON `x`.* TO `a`@`b`"), "GRANT SELECT ON `x`.* TO `a`@`b`");
    }

    #[test]
    fn an_account_that_exists_is_altered() {
        let create = "CREATE USER `a`@`%` IDENTIFIED BY PASSWORD '*1'";
        let (new, old) = (Flavour::parse("10.11.6-MariaDB"), Flavour::parse("5.6.24"));
        assert_eq!(altering(&new, "`a`@`%`", create), ["ALTER USER `a`@`%` IDENTIFIED BY PASSWORD '*1'"]);
        assert_eq!(altering(&old, "`a`@`%`", create), ["SET PASSWORD FOR `a`@`%` = '*1'"]);
        assert_eq!(
            altering(&old, "'a'@'%'", &created("'a'@'%'", "sha256_password", "", "x"))[1],
            "CREATE USER 'a'@'%' IDENTIFIED WITH 'sha256_password' AS 'x'"
        );
    }
}
