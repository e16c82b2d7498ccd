//! Roles of a cluster: listed, and made alike on another, with their passwords as the server keeps them.
//!
//! What a role may do with tables and other things of a database is kept there and goes with them. Kept by the cluster, and so copied
//! here: its attributes, password, memberships, settings, and what it may do with the database of the inventory.

use std::collections::BTreeMap;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::client::{Conn, col};
use super::data::admin;
use super::settings;
use super::sql::{ident, lit};
use crate::db::driver::{Account, AccountsCopied, Db};

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Role {
    name: String,
    login: bool,
    superuser: bool,
    /// As `CREATE ROLE` has them, without the password.
    attributes: String,
    /// The hash; empty for none.
    password: String,
    /// Until when it is good; empty for ever.
    until: String,
    /// Roles that it is a member of, and whether it may make others members.
    member_of: BTreeMap<String, bool>,
    /// Settings, as `ALTER ROLE` has them: of every database, or of the one.
    settings: Vec<(bool, String)>,
    /// Privileges on the database, and whether it may grant them.
    privileges: BTreeMap<String, bool>,
}

/// Settings whose value is a list of names.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// `name=value` of the catalog as `SET` wants it; a list's names are each quoted by themselves.
fn setting(text: &str) -> String {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if !LISTS.contains(&name) || value.is_empty() {
        return format!("{} TO {}", ident(name), lit(value));
    }
    let (mut names, mut one, mut quoted) = (Vec::new(), String::new(), false);
    for c in value.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut one)),
            c => one.push(c),
        }
    }
    names.push(one);
    format!("{} TO {}", ident(name), names.iter().map(|n| lit(n.trim())).collect::<Vec<_>>().join(", "))
}

/// Reads the roles of a cluster, but for the system's own and the one that it was made with. `database` is the one whose settings and
/// privileges count; passwords, which only a super-user may read, when they are asked for.
pub(super) async fn read(conn: &Conn, database: &str, passwords: bool) -> Result<Vec<Role>> {
    let table = if passwords { "pg_authid" } else { "pg_roles" };
    let rows = conn
        .texts(&format!(
            "SELECT rolname, rolcanlogin::text, rolsuper::text, format('%s %s %s %s %s %s %s CONNECTION LIMIT %s', \
             CASE WHEN rolsuper THEN 'SUPERUSER' ELSE 'NOSUPERUSER' END, CASE WHEN rolinherit THEN 'INHERIT' ELSE 'NOINHERIT' END, \
             CASE WHEN rolcreaterole THEN 'CREATEROLE' ELSE 'NOCREATEROLE' END, CASE WHEN rolcreatedb THEN 'CREATEDB' ELSE 'NOCREATEDB' END, \
             CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END, CASE WHEN rolreplication THEN 'REPLICATION' ELSE 'NOREPLICATION' END, \
             CASE WHEN rolbypassrls THEN 'BYPASSRLS' ELSE 'NOBYPASSRLS' END, rolconnlimit), \
             {}, nullif(rolvaliduntil, 'infinity')::text FROM {table} WHERE oid <> 10 AND rolname !~ '^pg_' ORDER BY 1",
            if passwords { "rolpassword" } else { "NULL" }
        ))
        .await?;
    let mut roles: Vec<Role> = rows
        .iter()
        .map(|r| Role {
            name: col(r, 0).into(),
            login: col(r, 1) == "true",
            superuser: col(r, 2) == "true",
            attributes: col(r, 3).into(),
            password: col(r, 4).into(),
            until: col(r, 5).into(),
            ..Role::default()
        })
        .collect();
    let name = lit(database);
    let members = "SELECT m.rolname, r.rolname, bool_or(a.admin_option)::text FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid \
        JOIN pg_roles m ON m.oid = a.member GROUP BY 1, 2";
    let set = format!(
        "SELECT r.rolname, (s.setdatabase <> 0)::text, unnest(s.setconfig) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole \
         LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE s.setdatabase = 0 OR d.datname = {name} ORDER BY 1, 2, 3"
    );
    let may = format!(
        "SELECT r.rolname, x.privilege_type, bool_or(x.is_grantable)::text FROM pg_database d, aclexplode(d.datacl) x JOIN pg_roles r ON r.oid = x.grantee \
         WHERE d.datname = {name} AND x.grantee <> d.datdba GROUP BY 1, 2"
    );
    for r in conn.texts(members).await? {
        if let Some(role) = roles.iter_mut().find(|o| o.name == col(&r, 0)) {
            role.member_of.insert(col(&r, 1).into(), col(&r, 2) == "true");
        }
    }
    for r in conn.texts(&set).await? {
        if let Some(role) = roles.iter_mut().find(|o| o.name == col(&r, 0)) {
            role.settings.push((col(&r, 1) == "true", setting(col(&r, 2))));
        }
    }
    for r in conn.texts(&may).await? {
        if let Some(role) = roles.iter_mut().find(|o| o.name == col(&r, 0)) {
            role.privileges.insert(col(&r, 1).into(), col(&r, 2) == "true");
        }
    }
    Ok(roles)
}

impl Role {
    /// Its name as people write it.
    fn shown(&self) -> String {
        let plain = self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if plain { self.name.clone() } else { ident(&self.name) }
    }

    /// Its attributes; `had` is the same role elsewhere.
    fn attributes(&self, had: Option<&Role>) -> String {
        match (&*self.until, had) {
            ("", Some(had)) if !had.until.is_empty() => format!("{} VALID UNTIL 'infinity'", self.attributes),
            ("", _) => self.attributes.clone(),
            (until, _) => format!("{} VALID UNTIL {}", self.attributes, lit(until)),
        }
    }

    /// The statement that makes the role, or changes the one that is there.
    fn made(&self, had: Option<&Role>) -> String {
        let password = if self.password.is_empty() { "NULL".into() } else { lit(&self.password) };
        let verb = if had.is_some() { "ALTER" } else { "CREATE" };
        format!("{verb} ROLE {} WITH {} PASSWORD {password}", ident(&self.name), self.attributes(had))
    }

    /// The statements that give it what it has beyond that, and take away what else `had` has. `database` is quoted.
    fn given(&self, had: &Role, database: &str) -> Vec<String> {
        let (name, mut out) = (ident(&self.name), Vec::new());
        for role in had.member_of.keys().filter(|r| !self.member_of.contains_key(*r)) {
            out.push(format!("REVOKE {} FROM {name}", ident(role)));
        }
        for (role, admin) in self.member_of.iter().filter(|(r, admin)| had.member_of.get(*r) != Some(admin)) {
            match admin {
                true => out.push(format!("GRANT {} TO {name} WITH ADMIN OPTION", ident(role))),
                false if had.member_of.contains_key(role) => out.push(format!("REVOKE ADMIN OPTION FOR {} FROM {name}", ident(role))),
                false => out.push(format!("GRANT {} TO {name}", ident(role))),
            }
        }
        for (one, place) in [(false, String::new()), (true, format!(" IN DATABASE {database}"))] {
            let of = |r: &Role| r.settings.iter().filter(|(o, _)| *o == one).map(|(_, s)| s.clone()).collect::<Vec<_>>();
            if of(self) != of(had) {
                if !of(had).is_empty() {
                    out.push(format!("ALTER ROLE {name}{place} RESET ALL"));
                }
                out.extend(of(self).iter().map(|s| format!("ALTER ROLE {name}{place} SET {s}")));
            }
        }
        for what in had.privileges.iter().filter(|(p, g)| self.privileges.get(*p) != Some(g)).map(|(p, _)| p) {
            out.push(format!("REVOKE {what} ON DATABASE {database} FROM {name}"));
        }
        for (what, option) in self.privileges.iter().filter(|(p, g)| had.privileges.get(*p) != Some(g)) {
            out.push(format!("GRANT {what} ON DATABASE {database} TO {name}{}", if *option { " WITH GRANT OPTION" } else { "" }));
        }
        out
    }

    /// Without what is of the database.
    fn apart(mut self) -> Role {
        self.settings.retain(|(one, _)| !one);
        self.privileges.clear();
        self
    }
}

/// A connection to the cluster of a database, which need not be there.
async fn cluster(cx: &Cx, db: &Db) -> Result<Conn> {
    Ok(admin(cx, &settings::beside(db, "postgres")).await?.0)
}

/// The roles, without their passwords.
pub(super) async fn accounts(cx: &Cx, db: &Db) -> Result<Vec<Account>> {
    let name = settings::database(db)?;
    let roles = read(&cluster(cx, db).await?, name, false).await?;
    let account = |r: &Role| {
        let mut grants = vec![format!("ALTER ROLE {} WITH {}", ident(&r.name), r.attributes(None))];
        grants.extend(r.given(&Role::default(), &ident(name)));
        Account { name: r.shown(), login: r.login, superuser: r.superuser, grants }
    };
    Ok(roles.iter().map(account).collect())
}

/// Makes roles of another cluster exist here alike, all or none.
pub(super) async fn copy(cx: &Cx, from: &Db, to: &Db, only: &[String]) -> Result<AccountsCopied> {
    let (a, b) = futures::try_join!(cluster(cx, from), cluster(cx, to))?;
    let (theirs, ours) = futures::try_join!(read(&a, settings::database(from)?, true), read(&b, settings::database(to)?, true))?;
    if let Some(name) = only.iter().find(|o| !theirs.iter().any(|r| &r.shown() == *o)) {
        return Err(Error::new(Code::DB_QUERY, format!("\"{}\" has no account {name}", from.name))
            .host(&from.host)
            .hint("accounts() shows their names"));
    }
    // What a role may do with a database comes when that is there.
    let there = b.text(&format!("SELECT 1 FROM pg_database WHERE datname = {}", lit(settings::database(to)?))).await?.is_some();
    let wanted = theirs.into_iter().filter(|r| only.is_empty() || only.contains(&r.shown())).map(|r| if there { r } else { r.apart() });
    let (mut done, mut first, mut then) = (AccountsCopied::default(), Vec::new(), Vec::new());
    for role in wanted {
        // Hashes are secrets: whatever shows a statement from here on must not show them.
        if !role.password.is_empty() {
            cx.redactor.add(&role.password);
        }
        let had = ours.iter().find(|o| o.name == role.name);
        match had {
            Some(had) if *had == role => {
                done.equal.push(role.shown());
                continue;
            }
            Some(_) => done.changed.push(role.shown()),
            None => done.created.push(role.shown()),
        }
        first.push(role.made(had));
        let had = had.cloned().unwrap_or_default();
        then.extend(role.given(&had, &ident(settings::database(to)?)));
    }
    // Roles first: others are their members. Statements that are sent together are one transaction.
    first.extend(then);
    if !first.is_empty() {
        b.run(&first.join("; ")).await.map_err(|e| e.host(&to.host))?;
    }
    Ok(done)
}

/// Makes the roles that another cluster lacks, and leaves alone those that it has.
pub(super) async fn make_missing(cx: &Cx, from: &Conn, to: &Conn) -> Result<()> {
    let (theirs, ours) = futures::try_join!(read(from, "", true), read(to, "", false))?;
    let missing: Vec<Role> = theirs.into_iter().filter(|r| !ours.iter().any(|o| o.name == r.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let first = missing.iter().map(|r| r.made(None));
    let then = missing.iter().flat_map(|r| r.given(&Role::default(), ""));
    to.run(&first.chain(then).collect::<Vec<_>>().join("; ")).await?;
    let names: Vec<&str> = missing.iter().map(|r| r.name.as_str()).collect();
    cx.message(format!("roles were made with their passwords: {}", names.join(", ")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_as_the_server_reads_them() {
        assert_eq!(setting("work_mem=64MB"), "\"work_mem\" TO '64MB'");
        assert_eq!(setting("search_path=\"$user\", \"a,b\", public"), "\"search_path\" TO '$user', 'a,b', 'public'");
        assert_eq!(setting("my.note=it's, so"), "\"my.note\" TO 'it''s, so'");
    }

    #[test]
    fn a_role_is_given_what_it_lacks_and_loses_what_is_too_much() {
        let role = |of: &[(&str, bool)], settings: &[(bool, &str)], may: &[(&str, bool)]| Role {
            name: "a".into(),
            member_of: of.iter().map(|(r, a)| ((*r).to_string(), *a)).collect(),
            settings: settings.iter().map(|(o, s)| (*o, (*s).to_string())).collect(),
            privileges: may.iter().map(|(p, g)| ((*p).to_string(), *g)).collect(),
            ..Role::default()
        };
        let want = role(&[("r", false), ("s", true)], &[(false, "x TO '1'"), (true, "y TO '2'")], &[("CONNECT", false)]);
        let had = role(&[("q", false), ("r", true)], &[(false, "x TO '0'")], &[("CREATE", false), ("CONNECT", true)]);
        assert_eq!(
            want.given(&had, "d"),
            [
                "REVOKE \"q\" FROM \"a\"",
                "REVOKE ADMIN OPTION FOR \"r\" FROM \"a\"",
                "GRANT \"s\" TO \"a\" WITH ADMIN OPTION",
                "ALTER ROLE \"a\" RESET ALL",
                "ALTER ROLE \"a\" SET x TO '1'",
                "ALTER ROLE \"a\" IN DATABASE d SET y TO '2'",
                "REVOKE CONNECT ON DATABASE d FROM \"a\"",
                "REVOKE CREATE ON DATABASE d FROM \"a\"",
                "GRANT CONNECT ON DATABASE d TO \"a\"",
            ]
        );
        assert_eq!(want.given(&want, "d"), Vec::<String>::new());
    }
}
