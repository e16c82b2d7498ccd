//! MariaDB or MySQL, of which version, and what differs between them.

use super::sql::text;

/// What keeps `mysqldump` of MySQL from adding to a dump. `loose`, since the older ones, and MariaDB's under that name, do not know all of it.
pub const MYSQLDUMP_PLAIN: &str = "--loose-set-gtid-purged=OFF --loose-no-tablespaces --loose-column-statistics=0";

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flavour {
    /// MariaDB; MySQL (or one of its kind) otherwise.
    pub maria: bool,
    /// Major, minor, patch.
    pub version: (u16, u16, u16),
    /// What the server says of itself.
    pub text: String,
}

impl Flavour {
    /// Reads `@@version`, such as `10.11.6-MariaDB-0+deb12u1-log`.
    pub fn parse(text: &str) -> Flavour {
        let bare = text.strip_prefix("5.5.5-").unwrap_or(text);
        let mut numbers = bare.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Flavour { maria: text.contains("MariaDB"), version: (next(), next(), next()), text: bare.to_string() }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        if self.maria { "mariadb" } else { "mysql" }
    }

    /// Whether MySQL has the words replica and source (8.0.22, 8.0.23).
    fn replica_words(&self) -> bool {
        !self.maria && self.version >= (8, 0, 23)
    }

    /// The statement that shows how replication stands.
    pub fn show_replica(&self) -> &'static str {
        if self.maria {
            "SHOW ALL SLAVES STATUS"
        } else if self.replica_words() {
            "SHOW REPLICA STATUS"
        } else {
            "SHOW SLAVE STATUS"
        }
    }

    /// `START SLAVE` and its like: `verb` is START, STOP, or RESET.
    pub fn replica(&self, verb: &str, rest: &str) -> String {
        format!("{verb} {}{}{rest}", if self.replica_words() { "REPLICA" } else { "SLAVE" }, if rest.is_empty() { "" } else { " " })
    }

    /// The statement that shows file and position of the binary log.
    pub fn show_binlog(&self) -> &'static str {
        if !self.maria && self.version >= (8, 4, 0) { "SHOW BINARY LOG STATUS" } else { "SHOW MASTER STATUS" }
    }

    /// `CHANGE MASTER TO …`, from settings named as MariaDB does.
    pub fn change_source(&self, settings: &[(&str, String)]) -> String {
        let (verb, prefix) =
            if self.replica_words() { ("CHANGE REPLICATION SOURCE TO", "SOURCE_") } else { ("CHANGE MASTER TO", "MASTER_") };
        let list: Vec<String> = settings.iter().map(|(k, v)| format!("{} = {v}", k.replacen("MASTER_", prefix, 1))).collect();
        format!("{verb} {}", list.join(", "))
    }

    /// The settings of [`Flavour::change_source`] by which replication goes on at a byte of the primary's log.
    pub fn by_place(&self, file: &str, pos: u64) -> Vec<(&'static str, String)> {
        let mut set = vec![("MASTER_LOG_FILE", text(file)), ("MASTER_LOG_POS", pos.to_string())];
        if self.maria {
            set.push(("MASTER_USE_GTID", "no".into()));
        }
        set
    }

    /// Whether it can refuse writes of super-users (MySQL 5.7.8); elsewhere those who are exempt lose the privilege while a fence is up.
    pub fn super_read_only(&self) -> bool {
        !self.maria && self.version >= (5, 7, 8)
    }

    /// Whether it has `SHOW CREATE USER` and `ALTER USER … IDENTIFIED` (MySQL 5.7.6, MariaDB 10.2).
    pub fn alters_users(&self) -> bool {
        self.version >= if self.maria { (10, 2, 0) } else { (5, 7, 6) }
    }

    /// The privilege by which an account writes to a server that is read-only: the newer and, where both count, the older.
    pub fn exempting(&self) -> &'static [&'static str] {
        match (self.maria, self.version) {
            (true, v) if v >= (10, 11, 0) => &["READ_ONLY ADMIN"],
            (true, v) if v >= (10, 5, 2) => &["READ_ONLY ADMIN", "SUPER"],
            _ => &["SUPER"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_servers_say_them() {
        let m = Flavour::parse("10.11.6-MariaDB-0+deb12u1-log");
        assert!(m.maria && m.version == (10, 11, 6));
        assert_eq!(Flavour::parse("5.5.5-10.3.39-MariaDB").version, (10, 3, 39));
        let s = Flavour::parse("8.0.36-0ubuntu0.22.04.1");
        assert!(!s.maria && s.version == (8, 0, 36) && s.name() == "mysql");
    }

    #[test]
    fn the_words_of_each_dialect() {
        let (m, old, new) = (Flavour::parse("10.11.6-MariaDB"), Flavour::parse("5.7.44"), Flavour::parse("8.4.2"));
        assert_eq!((m.replica("STOP", ""), new.replica("RESET", "ALL")), ("STOP SLAVE".into(), "RESET REPLICA ALL".into()));
        assert_eq!(
            (old.show_replica(), new.show_replica(), new.show_binlog()),
            ("SHOW SLAVE STATUS", "SHOW REPLICA STATUS", "SHOW BINARY LOG STATUS")
        );
        let set = [("MASTER_HOST", "'a'".to_string()), ("MASTER_PORT", "3306".to_string())];
        assert_eq!(m.change_source(&set), "CHANGE MASTER TO MASTER_HOST = 'a', MASTER_PORT = 3306");
        assert_eq!(new.change_source(&set), "CHANGE REPLICATION SOURCE TO SOURCE_HOST = 'a', SOURCE_PORT = 3306");
        // The old words are gone from 8.4, also where they stand in the middle.
        let key = [("GET_MASTER_PUBLIC_KEY", "1".to_string()), ("RELAY_LOG_POS", "4".to_string())];
        assert_eq!(new.change_source(&key), "CHANGE REPLICATION SOURCE TO GET_SOURCE_PUBLIC_KEY = 1, RELAY_LOG_POS = 4");
        assert_eq!(
            m.change_source(&m.by_place("b.1", 4)),
            "CHANGE MASTER TO MASTER_LOG_FILE = 'b.1', MASTER_LOG_POS = 4, MASTER_USE_GTID = no"
        );
        assert_eq!(new.by_place("b.1", 4).len(), 2);
        assert!(!m.super_read_only() && old.super_read_only() && !Flavour::parse("5.6.24-log").super_read_only());
        assert!(m.alters_users() && old.alters_users() && !Flavour::parse("5.6.24-log").alters_users());
        assert_eq!(m.exempting(), ["READ_ONLY ADMIN"]);
        assert_eq!(Flavour::parse("10.6.1-MariaDB").exempting(), ["READ_ONLY ADMIN", "SUPER"]);
    }
}
