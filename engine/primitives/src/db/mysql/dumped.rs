//! What `mariadb-dump` and `mysqldump` write, cut into statements while it comes, with the position that it is of.

use super::state::Position;

/// A piece of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Rows: may be loaded beside other rows.
    Rows(String),
    /// A setting of the session: every session needs it.
    Session(String),
    /// Everything else, in its turn.
    Other(String),
}

/// Cuts lines into statements.
#[derive(Debug, Default)]
pub struct Cutter {
    delimiter: Option<String>,
    now: Vec<u8>,
    /// The position that the dump says it is of.
    pub position: Position,
    /// Whether its last line has come.
    pub whole: bool,
}

impl Cutter {
    /// Takes a line with its end; gives the statement that it completes.
    pub fn line(&mut self, line: &[u8]) -> Option<Piece> {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if self.now.is_empty() {
            if text.is_empty() {
                return None;
            }
            if text.starts_with(b"--") {
                self.comment(&String::from_utf8_lossy(text));
                return None;
            }
            // For the client program alone.
            if text.starts_with(b"/*M!999999\\-") || text.starts_with(b"/*!999999\\-") {
                return None;
            }
            if let Some(rest) = text.strip_prefix(b"DELIMITER ") {
                let word = String::from_utf8_lossy(rest).trim().to_string();
                self.delimiter = (word != ";").then_some(word);
                return None;
            }
        }
        self.now.extend_from_slice(text);
        let end = self.delimiter.as_deref().unwrap_or(";").as_bytes();
        let trimmed = self.now.trim_ascii_end();
        if !trimmed.ends_with(end) {
            self.now.push(b'\n');
            return None;
        }
        let length = trimmed.len() - end.len();
        let mut done = std::mem::take(&mut self.now);
        done.truncate(length);
        if done.trim_ascii().is_empty() {
            return None;
        }
        let text = String::from_utf8(done).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        Some(self.kind(text))
    }

    fn kind(&mut self, text: String) -> Piece {
        if let Some(at) = text.find("GTID_PURGED=") {
            self.position.gtid = text.get(at..).and_then(|t| t.split('\'').nth_back(1)).unwrap_or("").replace('\n', "");
            return Piece::Session("SELECT 1".into());
        }
        if text.starts_with("INSERT INTO ") || text.starts_with("INSERT  IGNORE INTO ") || text.starts_with("REPLACE INTO ") {
            return Piece::Rows(text);
        }
        let bare = text.strip_prefix("/*!").map_or(text.as_str(), |t| t.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start());
        if bare.starts_with("SET ") || bare.starts_with("USE ") { Piece::Session(text) } else { Piece::Other(text) }
    }

    fn comment(&mut self, text: &str) {
        if text.starts_with("-- Dump completed") {
            self.whole = true;
        }
        if let Some(rest) = text.strip_prefix("-- SET GLOBAL gtid_slave_pos='") {
            self.position.gtid = rest.split('\'').next().unwrap_or("").to_string();
        }
        if let Some((_, rest)) = text.split_once("_LOG_FILE='") {
            self.position.file = rest.split('\'').next().unwrap_or("").to_string();
            if let Some((_, pos)) = rest.split_once("_LOG_POS=") {
                self.position.pos = pos.trim_end_matches(';').trim().parse().unwrap_or(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> (Vec<Piece>, Cutter) {
        let mut c = Cutter::default();
        let pieces = text.split_inclusive('\n').filter_map(|l| c.line(l.as_bytes())).collect();
        (pieces, c)
    }

    #[test]
    fn a_dump_of_mariadb() {
        let (pieces, c) = cut("/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump 10.19\n/*!40101 SET NAMES utf8mb4 */;\n\
            -- CHANGE MASTER TO MASTER_LOG_FILE='bin.000001', MASTER_LOG_POS=1557;\nUSE `shop`;\nCREATE TABLE `t` (\n  `a` int COMMENT 'x; y'\n);\n\
            INSERT INTO `t` VALUES\n(1,'a;\\n'),\n(2,'b');\nDELIMITER ;;\n/*!50003 CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW BEGIN\nSET NEW.a = 1;\nEND */;;\nDELIMITER ;\n\
            -- SET GLOBAL gtid_slave_pos='0-1-5,1-1-7';\n-- Dump completed on 2026-11-21\n");
        assert_eq!(c.position, Position { gtid: "0-1-5,1-1-7".into(), file: "bin.000001".into(), pos: 1557 });
        assert!(c.whole && pieces.len() == 5, "{pieces:?}");
        assert_eq!(pieces[0], Piece::Session("/*!40101 SET NAMES utf8mb4 */".into()));
        assert_eq!(pieces[1], Piece::Session("USE `shop`".into()));
        assert!(matches!(&pieces[2], Piece::Other(t) if t.ends_with("'x; y'\n)")));
        assert_eq!(pieces[3], Piece::Rows("INSERT INTO `t` VALUES\n(1,'a;\\n'),\n(2,'b')".into()));
        assert!(matches!(&pieces[4], Piece::Other(t) if t.ends_with("SET NEW.a = 1;\nEND */")));
    }

    #[test]
    fn the_gtids_of_mysql() {
        let (_, c) = cut(
            "SET @@GLOBAL.GTID_PURGED=/*!80000 '+'*/ 'a-b:1-5,\nc-d:1-2';\n-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='b.1', SOURCE_LOG_POS=4;\n",
        );
        assert_eq!(c.position, Position { gtid: "a-b:1-5,c-d:1-2".into(), file: "b.1".into(), pos: 4 });
        assert!(!c.whole);
    }
}
