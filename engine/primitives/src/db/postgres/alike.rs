//! Definitions that servers of different major versions write differently, and that say the same.

/// Whether two definitions of an object say the same.
pub(super) fn same(name: &str, a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    if name.starts_with("view ") || name.starts_with("materialized view ") {
        return unqualified(a, b) || unqualified(b, a);
    }
    name.starts_with("grants of ") && (unmaintained(a, b) || unmaintained(b, a))
}

/// Whether `short` is `long` without the one name that stands before every column there: until version 15 the columns of a view of one
/// relation have its name, since then they have none.
fn unqualified(long: &str, short: &str) -> bool {
    let end = |c: char| !(c.is_alphanumeric() || c == '_' || c == '$' || c == '"');
    let Some(dot) = long.find('.') else { return false };
    let Some(before) = long.get(..dot) else { return false };
    let start = before.rfind(end).map_or(0, |i| i + 1);
    let Some(name) = before.get(start..).filter(|n| !n.is_empty()) else { return false };
    // What stands as a word of its own is a relation or its alias; a schema never does.
    short.split(end).any(|word| word == name) && !short.contains(&format!("{name}.")) && without(long, name) == short
}

/// A text without a name that qualifies.
fn without(text: &str, name: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    let mark = format!("{name}.");
    while let Some(at) = rest.find(&mark) {
        let (head, tail) = rest.split_at(at);
        out.push_str(head);
        // The end of a longer name is another one.
        if head.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.') {
            out.push_str(&mark);
        }
        rest = tail.get(mark.len()..).unwrap_or_default();
    }
    out + rest
}

/// Whether `old` has what `new` has but the privilege of maintenance, which version 17 brought.
fn unmaintained(old: &str, new: &str) -> bool {
    let privileges = |grant: &str| {
        let (head, tail) = grant.split_once('=').unwrap_or((grant, ""));
        let (rights, by) = tail.split_once('/').unwrap_or((tail, ""));
        (head.to_string(), rights.to_string(), by.to_string())
    };
    let all = |text: &str| text.split(' ').map(privileges).collect::<Vec<_>>();
    let (old, mut new) = (all(old), all(new));
    if old.iter().any(|(_, rights, _)| rights.contains('m')) {
        return false;
    }
    for (_, rights, _) in &mut new {
        *rights = rights.replace("m*", "").replace('m', "");
    }
    old == new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_old_and_new_servers_say_the_same() {
        let view = |a: &str, b: &str| same("view v", a, b);
        assert!(view(" SELECT orders.id,\n    orders.n\n   FROM orders;", " SELECT id,\n    n\n   FROM orders;"));
        assert!(view(" SELECT id\n   FROM app.orders;", " SELECT orders.id\n   FROM app.orders;"));
        assert!(view(" SELECT o.id\n   FROM orders o;", " SELECT id\n   FROM orders o;"));
        assert!(!view(" SELECT orders.id\n   FROM orders;", " SELECT n\n   FROM orders;"));
        assert!(!view(" SELECT id\n   FROM app.orders;", " SELECT id\n   FROM orders;"), "another schema is another table");
        let join = |c: &str| format!(" SELECT {c}\n   FROM a\n     JOIN b ON a.id = b.id;");
        assert!(!view(&join("a.n"), &join("b.n")));
        assert!(!same("table t", "t.a", "a"));
    }

    #[test]
    fn a_grant_of_all_is_one_on_every_version() {
        let grants = |a: &str, b: &str| same("grants of orders", a, b);
        assert!(grants("app=arwdDxt/app ro=r/app", "app=arwdDxtm/app ro=r/app"));
        assert!(!grants("app=arwdDxt/app", "app=arwdDxtm/app ro=r/app"));
        assert!(!grants("app=arwdDxtm/app", "app=rm/app"));
        assert!(grants("m=r/app", "m=rm/app") && !grants("m=r/app", "n=rm/app"));
    }
}
