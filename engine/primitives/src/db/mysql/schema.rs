//! Definitions in a form that can be compared, and the tables with their keys.

use std::collections::BTreeMap;

use runbook_core::Result;
use runbook_core::primitive::Cx;

use super::connect::{Sess, get, session};
use super::data::{ACTIONS, list, named, schemas, tables};
use super::sql::{ident, text};
use crate::db::driver::{Db, Keyed};

/// Types whose order in the server is not that of their text, so that a key of them cannot be cut into spans.
const UNORDERED: [&str; 8] = ["enum", "set", "bit", "float", "double", "geometry", "json", "time"];

pub async fn read(cx: &Cx, db: &Db) -> Result<(BTreeMap<String, String>, Vec<Keyed>)> {
    let mut s = session(cx, db).await?;
    let schemas = schemas(&mut s, db).await?;
    let mut objects = BTreeMap::new();
    for row in tables(&mut s, &schemas).await? {
        let (schema, table) = (get(&row, "sch"), get(&row, "tab"));
        let made = s.rows(format!("SHOW CREATE TABLE {}.{}", ident(schema), ident(table))).await?;
        let made = made.first().map_or("", |r| get(r, "create table")).to_string();
        objects.insert(format!("table {}", named(db, schema, table)), normal(&made));
    }
    for schema in &schemas {
        others(&mut s, db, schema, &mut objects).await?;
    }
    let keyed = keyed(&mut s, db, &schemas).await?;
    s.close().await;
    Ok((objects, keyed))
}

/// Views, triggers, routines, events.
async fn others(s: &mut Sess, db: &Db, schema: &str, objects: &mut BTreeMap<String, String>) -> Result<()> {
    let queries = [
        (
            "view",
            format!(
                "SELECT table_name AS n, CONCAT_WS(' ', view_definition, check_option, definer, security_type) AS d FROM information_schema.views WHERE table_schema = {}",
                text(schema)
            ),
        ),
        (
            "trigger",
            format!(
                "SELECT trigger_name AS n, CONCAT_WS(' ', action_timing, event_manipulation, event_object_table, action_order, action_statement, sql_mode, definer) AS d FROM information_schema.triggers WHERE trigger_schema = {}",
                text(schema)
            ),
        ),
        // Whether an event is switched on differs between a primary and its replica.
        (
            "event",
            format!(
                "SELECT event_name AS n, CONCAT_WS(' ', event_type, execute_at, interval_value, interval_field, on_completion, event_definition, sql_mode, definer) AS d FROM information_schema.events WHERE event_schema = {}",
                text(schema)
            ),
        ),
        (
            "routine",
            format!(
                "SELECT CONCAT(routine_type, ' ', routine_name) AS n, CONCAT_WS(' ', dtd_identifier, routine_definition, is_deterministic, sql_data_access, security_type, sql_mode, definer) AS d FROM information_schema.routines WHERE routine_schema = {}",
                text(schema)
            ),
        ),
    ];
    for (kind, sql) in queries {
        for row in s.rows(sql).await? {
            // The server writes a view's tables with their schema; of a schema of another name it is the same view.
            let text = if kind == "view" { get(&row, "d").replace(&format!("{}.", ident(schema)), "") } else { get(&row, "d").to_string() };
            objects.insert(format!("{kind} {}", named(db, schema, get(&row, "n"))), text);
        }
    }
    for row in s.rows(format!("SELECT routine_type AS t, specific_name AS n, COALESCE(GROUP_CONCAT(CONCAT_WS(' ', parameter_mode, parameter_name, dtd_identifier) ORDER BY ordinal_position), '') AS d FROM information_schema.parameters WHERE specific_schema = {} GROUP BY 1, 2", text(schema))).await? {
        let key = format!("routine {}", named(db, schema, &format!("{} {}", get(&row, "t"), get(&row, "n"))));
        if let Some(d) = objects.get_mut(&key) {
            d.push_str(&format!(" ({})", get(&row, "d")));
        }
    }
    Ok(())
}

/// A definition without what is no part of it: the next number, the old name of a character set.
fn normal(made: &str) -> String {
    let mut out = made.to_string();
    if let Some(at) = out.rfind(" AUTO_INCREMENT=") {
        let rest = out.get(at + " AUTO_INCREMENT=".len()..).unwrap_or("");
        let digits = rest.chars().take_while(char::is_ascii_digit).count();
        // Only among the table's options, after its last bracket.
        if digits > 0 && out.get(..at).is_some_and(|head| head.contains("\n)")) {
            out.replace_range(at..at + " AUTO_INCREMENT=".len() + digits, "");
        }
    }
    for (old, new) in [
        ("CHARSET=utf8 ", "CHARSET=utf8mb3 "),
        ("CHARACTER SET utf8 ", "CHARACTER SET utf8mb3 "),
        ("COLLATE=utf8_", "COLLATE=utf8mb3_"),
        ("COLLATE utf8_", "COLLATE utf8mb3_"),
    ] {
        out = out.replace(old, new);
    }
    out.strip_suffix("CHARSET=utf8").map_or(out.clone(), |head| format!("{head}CHARSET=utf8mb3"))
}

async fn keyed(s: &mut Sess, db: &Db, schemas: &[String]) -> Result<Vec<Keyed>> {
    let list = list(schemas);
    let mut out: BTreeMap<(String, String), Keyed> = BTreeMap::new();
    for row in tables(s, schemas).await? {
        let (schema, table) = (get(&row, "sch").to_string(), get(&row, "tab").to_string());
        let mut k =
            Keyed { name: named(db, &schema, &table), rows: number(get(&row, "n")), bytes: number(get(&row, "bytes")), ..Keyed::default() };
        k.extra.insert("table".into(), format!("{}.{}", ident(&schema), ident(&table)));
        out.insert((schema, table), k);
    }
    let columns = s
        .rows(format!(
            "SELECT table_schema AS sch, table_name AS tab, column_name AS col, data_type AS ty, column_type AS full, extra AS x \
             FROM information_schema.columns WHERE table_schema IN ({list}) AND table_name <> '{ACTIONS}' ORDER BY table_schema, table_name, ordinal_position"
        ))
        .await?;
    for row in &columns {
        // Worked out from the other columns whenever they are read.
        if get(row, "x").contains("VIRTUAL") {
            continue;
        }
        if let Some(k) = out.get_mut(&(get(row, "sch").to_string(), get(row, "tab").to_string())) {
            k.columns.push(get(row, "col").to_string());
            k.extra.insert(format!("type {}", get(row, "col")), get(row, "ty").to_lowercase());
        }
    }
    let keys = s
        .rows(format!(
            "SELECT table_schema AS sch, table_name AS tab, index_name AS ix, column_name AS col, nullable AS nul, COALESCE(sub_part, 0) AS part \
             FROM information_schema.statistics WHERE table_schema IN ({list}) AND non_unique = 0 ORDER BY table_schema, table_name, index_name = 'PRIMARY' DESC, index_name, seq_in_index"
        ))
        .await?;
    let mut found: BTreeMap<(String, String), Vec<(String, Vec<String>, bool)>> = BTreeMap::new();
    for row in &keys {
        let all = found.entry((get(row, "sch").to_string(), get(row, "tab").to_string())).or_default();
        let whole = get(row, "nul") != "YES" && get(row, "part") == "0" && !get(row, "col").is_empty();
        match all.last_mut() {
            Some((name, columns, good)) if name == get(row, "ix") => {
                columns.push(get(row, "col").to_string());
                *good &= whole;
            }
            _ => all.push((get(row, "ix").to_string(), vec![get(row, "col").to_string()], whole)),
        }
    }
    for (table, keys) in found {
        let Some(k) = out.get_mut(&table) else { continue };
        if let Some((_, columns, _)) = keys.into_iter().find(|(_, _, good)| *good) {
            let ty = |c: &String| k.extra.get(&format!("type {c}")).map_or("", String::as_str);
            if columns.iter().any(|c| UNORDERED.contains(&ty(c)) || ty(c).is_empty()) {
                k.extra.insert("uncut".into(), "yes".into());
            }
            k.key = columns;
        }
    }
    Ok(out.into_values().collect())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn what_is_no_part_of_a_definition() {
        let a = "CREATE TABLE `t` (\n  `a` int(11) NOT NULL AUTO_INCREMENT COMMENT ' AUTO_INCREMENT=7',\n  PRIMARY KEY (`a`)\n) ENGINE=InnoDB AUTO_INCREMENT=4711 DEFAULT CHARSET=utf8";
        assert_eq!(
            normal(a),
            "CREATE TABLE `t` (\n  `a` int(11) NOT NULL AUTO_INCREMENT COMMENT ' AUTO_INCREMENT=7',\n  PRIMARY KEY (`a`)\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3"
        );
        assert_eq!(normal(&normal(a)), normal(a));
        assert_ne!(normal("`a` int DEFAULT 1"), normal("`a` int DEFAULT 2"));
    }
}
