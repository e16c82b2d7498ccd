//! Zone files (RFC 1035, 5): reading and writing. What cannot be read with certainty is refused with its line.

use std::fmt::Write as _;

use hickory_proto::rr::{Name, RecordType};
use runbook_core::{Code, Error, Result};

use super::codec::{to_text, to_wire, type_name, type_of};
use super::name;
use super::provider::Change;
use super::record::RrSet;

/// Writes record sets as a zone file: the SOA first, then by name from the zone's own downwards, then by type.
pub fn write(origin: &Name, sets: &[RrSet]) -> String {
    let mut sets: Vec<&RrSet> = sets.iter().collect();
    let rank = |s: &RrSet| (s.ty != RecordType::SOA, s.name != *origin, s.name.clone(), s.ty != RecordType::NS, u16::from(s.ty));
    sets.sort_by_cached_key(|s| rank(s));
    let mut out = format!("$ORIGIN {}\n", name::absolute(origin));
    for s in sets {
        for v in &s.values {
            let _ = writeln!(out, "{}\t{}\tIN\t{}\t{v}", name::absolute(&s.name), s.ttl, type_name(s.ty));
        }
    }
    out
}

/// One entry, with its place in the text.
struct Entry {
    line: usize,
    /// Whether it began with white space: it is of the same name as the one before.
    indented: bool,
    words: Vec<String>,
    /// Where each word ends, in bytes.
    ends: Vec<usize>,
    /// From the first byte of its first line to behind the last one's line end.
    span: std::ops::Range<usize>,
}

impl Entry {
    fn at(line: usize, start: usize, indented: bool) -> Entry {
        Entry { line, indented, words: vec![], ends: vec![], span: start..start }
    }
}

fn bad(line: usize, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DNS_RECORD, format!("line {line} of the zone file: {why}"))
}

/// Cuts the text into entries: comments dropped, parentheses resolved, quotes kept in their words.
fn entries(text: &str) -> Result<Vec<Entry>> {
    let mut out = Vec::new();
    let (mut line, mut depth) = (1, 0usize);
    let mut entry = Entry::at(line, 0, false);
    let mut word = String::new();
    let mut fresh = true;
    let mut rest = text.char_indices().peekable();
    let mut here;
    macro_rules! end_word {
        () => {
            if !word.is_empty() {
                entry.words.push(std::mem::take(&mut word));
                entry.ends.push(here);
            }
        };
    }
    while let Some((at, c)) = rest.next() {
        here = at;
        if fresh {
            entry = Entry::at(line, at, c == ' ' || c == '\t');
            fresh = false;
        }
        let mut chars = std::iter::from_fn(|| rest.next().map(|(_, c)| c));
        match c {
            '"' => {
                // `alpn="h2,h3"` is one word; a text of its own begins with the quotes.
                let glued = !word.is_empty();
                word.push('"');
                loop {
                    match chars.next() {
                        None | Some('\n') => return Err(bad(line, "the quotes do not close")),
                        Some('"') => break,
                        Some('\\') => {
                            word.push('\\');
                            word.extend(chars.next());
                        }
                        Some(c) => word.push(c),
                    }
                }
                word.push('"');
                here = rest.peek().map_or(text.len(), |(i, _)| *i);
                if !glued {
                    end_word!();
                }
            }
            '\\' => {
                word.push('\\');
                word.extend(chars.next());
            }
            ';' => {
                end_word!();
                while rest.next_if(|(_, c)| *c != '\n').is_some() {}
            }
            '(' => {
                end_word!();
                depth += 1;
            }
            ')' => {
                end_word!();
                depth = depth.checked_sub(1).ok_or_else(|| bad(line, "a parenthesis is closed that was not opened"))?;
            }
            '\n' => {
                end_word!();
                line += 1;
                if depth == 0 {
                    fresh = true;
                    entry.span.end = at + 1;
                    if !entry.words.is_empty() {
                        out.push(std::mem::replace(&mut entry, Entry::at(line, at + 1, false)));
                    }
                }
            }
            c if c.is_whitespace() => end_word!(),
            c => word.push(c),
        }
    }
    here = text.len();
    end_word!();
    if depth > 0 {
        return Err(bad(entry.line, "a parenthesis is not closed"));
    }
    if !entry.words.is_empty() {
        entry.span.end = text.len();
        out.push(entry);
    }
    Ok(out)
}

/// A TTL: seconds, or with units as BIND writes them (`1h30m`, `2W`).
pub fn ttl(text: &str) -> Option<u32> {
    if let Ok(n) = text.parse::<u32>() {
        return Some(n);
    }
    let (mut total, mut n, mut digits) = (0u32, 0u32, false);
    for c in text.chars() {
        if let Some(d) = c.to_digit(10) {
            n = n.checked_mul(10)?.checked_add(d)?;
            digits = true;
            continue;
        }
        let unit = match c.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            'w' => 604_800,
            _ => return None,
        };
        if !digits {
            return None;
        }
        total = total.checked_add(n.checked_mul(unit)?)?;
        (n, digits) = (0, false);
    }
    (!digits && !text.is_empty()).then_some(total)
}

/// Reads a zone file of the zone `zone`.
///
/// # Errors
/// `RB0604` with the line: not a record, a name outside of the zone, TTLs that differ within a set, `$INCLUDE` and `$GENERATE`.
pub fn read(zone: &Name, text: &str) -> Result<Vec<RrSet>> {
    let entries = entries(text)?;
    Ok(walk(zone, &entries)?.0)
}

/// The record sets, and of which each entry is (name, type); `None` for directives.
type Walked = (Vec<RrSet>, Vec<Option<(Name, RecordType)>>);

fn walk(zone: &Name, entries: &[Entry]) -> Result<Walked> {
    let mut of = Vec::with_capacity(entries.len());
    let mut origin = zone.clone();
    let mut default_ttl: Option<u32> = None;
    let mut last_ttl: Option<u32> = None;
    let mut owner: Option<Name> = None;
    let mut found: Vec<RrSet> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for e in entries {
        of.push(None);
        let first = e.words.first().map_or("", String::as_str);
        let second = e.words.get(1).map_or("", String::as_str);
        match first.to_ascii_uppercase().as_str() {
            "$ORIGIN" if !e.indented => {
                origin = name::from_file(second, Some(&origin)).map_err(|why| bad(e.line, why))?.to_lowercase();
                continue;
            }
            "$TTL" if !e.indented => {
                default_ttl = Some(ttl(second).ok_or_else(|| bad(e.line, format!("{second:?} is not a TTL")))?);
                continue;
            }
            "$INCLUDE" | "$GENERATE" if !e.indented => {
                return Err(bad(e.line, format!("{first} is not read"))
                    .hint("let the name server write the whole zone: named-compilezone -o - ZONE FILE"));
            }
            _ if first.starts_with('$') && !e.indented => return Err(bad(e.line, format!("{first} is not known"))),
            _ => {}
        }
        let mut words = e.words.as_slice();
        if !e.indented {
            owner = Some(name::from_file(first, Some(&origin)).map_err(|why| bad(e.line, why))?.to_lowercase());
            words = words.get(1..).unwrap_or_default();
        }
        let owner = owner.clone().ok_or_else(|| bad(e.line, "the first record has no name"))?;
        // TTL and class come in either order, and either may be missing.
        let mut given = None;
        let mut class = false;
        let ty = loop {
            let Some((w, rest)) = words.split_first() else { return Err(bad(e.line, "there is no type of record")) };
            words = rest;
            if !class && ["IN", "CH", "HS", "CS"].contains(&w.to_ascii_uppercase().as_str()) {
                if !w.eq_ignore_ascii_case("IN") {
                    return Err(bad(e.line, format!("the class {w} is not read")));
                }
                class = true;
            } else if let (None, Some(t)) = (given, ttl(w)) {
                given = Some(t);
            } else {
                break type_of(w).ok_or_else(|| bad(e.line, format!("{w:?} is not a type of record")))?;
            }
        };
        if !zone.zone_of(&owner) {
            return Err(bad(e.line, format!("{} is not in the zone {}", name::show(&owner), name::show(zone))));
        }
        let wire = to_wire(ty, &words.join(" "), Some(&origin))
            .map_err(|why| bad(e.line, format!("{:?} is not the value of a record of type {}: {why}", words.join(" "), type_name(ty))))?;
        let value = to_text(ty, &wire);
        // The last field of the SOA serves as TTL where nothing else is said (RFC 1035; RFC 2308 has $TTL instead).
        let soa_minimum = if ty == RecordType::SOA { value.rsplit(' ').next().and_then(|t| t.parse().ok()) } else { None };
        let ttl = given.or(default_ttl).or(last_ttl).or(soa_minimum);
        let ttl = ttl.ok_or_else(|| bad(e.line, "there is no TTL").hint("begin the file with $TTL 3600"))?;
        last_ttl = Some(ttl);
        if let Some(last) = of.last_mut() {
            *last = Some((owner.clone(), ty));
        }
        let at = *index.entry((owner.clone(), ty)).or_insert_with(|| {
            found.push(RrSet::new(owner, ty, ttl, vec![]));
            found.len() - 1
        });
        let Some(set) = found.get_mut(at) else { continue };
        if set.ttl != ttl {
            return Err(bad(e.line, format!("{} has the TTLs {} and {ttl}; a set of records has one", set.label(), set.ttl)));
        }
        set.values.push(value);
    }
    Ok((found.into_iter().map(|s| RrSet::new(s.name, s.ty, s.ttl, s.values)).collect(), of))
}

/// The next serial number: one more or, where it is written as a date (`2026112101`), at least that of today.
pub fn next_serial(serial: u32, today: &str) -> u32 {
    let next = match serial.wrapping_add(1) {
        0 => 1,
        n => n,
    };
    let dated = (1_990_010_100..2_200_000_000).contains(&serial)
        && (1..=12).contains(&(serial / 10_000 % 100))
        && (1..=31).contains(&(serial / 100 % 100));
    match today.parse::<u32>() {
        Ok(day) if dated => next.max(day * 100),
        _ => next,
    }
}

/// Changes record sets in the text of a zone file and raises its serial number. Everything else stays as people wrote it, comments too;
/// where that cannot be done with certainty, the whole file is written anew. Gives the text and the new serial number.
///
/// # Errors
/// As [`read`]; `RB0604` when there is no SOA.
pub fn edit(zone: &Name, text: &str, changes: &[Change], today: &str) -> Result<(String, u32)> {
    let entries = entries(text)?;
    let (mut want, of) = walk(zone, &entries)?;
    let soa = want.iter_mut().find(|s| s.ty == RecordType::SOA && s.name == *zone);
    let soa = soa.ok_or_else(|| Error::new(Code::DNS_RECORD, format!("the zone file of {} has no SOA", name::show(zone))))?;
    let mut fields: Vec<String> = soa.values.first().map_or(vec![], |v| v.split(' ').map(str::to_string).collect());
    let old: u32 = fields.get(2).and_then(|f| f.parse().ok()).unwrap_or(0);
    let serial = next_serial(old, today);
    if let Some(f) = fields.get_mut(2) {
        *f = serial.to_string();
    }
    soa.values = vec![fields.join(" ")];
    for c in changes {
        want.retain(|s| s.name != c.name || s.ty != c.ty);
        want.extend(c.after.clone());
    }
    let sorted = |mut sets: Vec<RrSet>| {
        sets.sort_by(|a, b| (&a.name, u16::from(a.ty)).cmp(&(&b.name, u16::from(b.ty))));
        sets
    };
    let want = sorted(want);
    let edited = in_place(text, &entries, &of, changes, old, serial);
    let right = |t: &String| read(zone, t).is_ok_and(|sets| sorted(sets) == want);
    Ok((edited.filter(right).unwrap_or_else(|| write(zone, &want)), serial))
}

fn in_place(text: &str, entries: &[Entry], of: &[Option<(Name, RecordType)>], changes: &[Change], old: u32, serial: u32) -> Option<String> {
    let lines = |set: &RrSet| -> String {
        set.values.iter().map(|v| format!("{}\t{}\tIN\t{}\t{v}\n", name::absolute(&set.name), set.ttl, type_name(set.ty))).collect()
    };
    let mut out = String::new();
    let mut at = 0;
    let mut written = vec![false; changes.len()];
    // The owner that entries without a name of their own would lose.
    let mut lost: Option<&Name> = None;
    for (e, of) in entries.iter().zip(of) {
        out.push_str(text.get(at..e.span.start)?);
        at = e.span.end;
        let whole = text.get(e.span.clone())?;
        let Some((owner, ty)) = of else {
            out.push_str(whole);
            continue;
        };
        let change = changes.iter().position(|c| c.name == *owner && c.ty == *ty);
        if let Some(i) = change {
            if !std::mem::replace(written.get_mut(i)?, true) {
                out.extend(changes.get(i).and_then(|c| c.after.as_ref()).map(&lines));
            }
            lost = Some(owner);
            continue;
        }
        if *ty == RecordType::SOA {
            // The server, the mailbox, then the serial number.
            let i = e.words.iter().position(|w| w.eq_ignore_ascii_case("SOA"))? + 3;
            let end = *e.ends.get(i)?;
            let start = end.checked_sub(old.to_string().len())?;
            if text.get(start..end)? != old.to_string() {
                return None;
            }
            out.push_str(text.get(e.span.start..start)?);
            out.push_str(&serial.to_string());
            out.push_str(text.get(end..e.span.end)?);
        } else {
            if e.indented && lost.is_some() {
                out.push_str(&name::absolute(owner));
            }
            out.push_str(whole);
        }
        lost = None;
    }
    out.push_str(text.get(at..)?);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    for (c, done) in changes.iter().zip(written) {
        if !done {
            out.extend(c.after.as_ref().map(&lines));
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone() -> Name {
        name::origin("example.test").unwrap()
    }

    const FILE: &str = r#"
$TTL 1h
@   IN  SOA ns1 admin.example.test. ( 2024010101 ; serial
            3h
"#;

    #[test]
    fn a_file_as_people_write_it_is_read() {
        let text = r#"; the zone
$TTL 1h
@   IN  SOA ns1 admin.example.test. (
        2024010101 ; serial
        10800 3600 604800 300 )
    IN  NS  ns1
        NS  ns.other.net.
ns1     A   192.0.2.53
www 60 IN CNAME shop
www2 IN 2m CNAME shop
mail    MX  10 mail
txt     TXT "a ; b" ( "c"
            "d""e" )
svc     HTTPS 1 . alpn="h2,h3" port=8443
$ORIGIN sub.example.test.
@       NS  ns1.example.test.
x       A   192.0.2.9
        AAAA 2001:db8::9
*.w     A   192.0.2.10
"#;
        let sets = read(&zone(), text).unwrap();
        let shown: Vec<String> = sets.iter().map(|s| format!("{} {} {}", s.label(), s.ttl, s.values.join(" | "))).collect();
        assert_eq!(
            shown,
            [
                "example.test SOA 3600 ns1.example.test. admin.example.test. 2024010101 10800 3600 604800 300",
                "example.test NS 3600 ns.other.net. | ns1.example.test.",
                "ns1.example.test A 3600 192.0.2.53",
                "www.example.test CNAME 60 shop.example.test.",
                "www2.example.test CNAME 120 shop.example.test.",
                "mail.example.test MX 3600 10 mail.example.test.",
                r#"txt.example.test TXT 3600 "a ; b" "c" "d" "e""#,
                "svc.example.test HTTPS 3600 1 . alpn=h2,h3 port=8443",
                "sub.example.test NS 3600 ns1.example.test.",
                "x.sub.example.test A 3600 192.0.2.9",
                "x.sub.example.test AAAA 3600 2001:db8::9",
                "*.w.sub.example.test A 3600 192.0.2.10",
            ]
        );
        assert_eq!(read(&zone(), &write(&zone(), &sets)).unwrap().len(), sets.len());
    }

    #[test]
    fn what_is_not_certain_is_refused_with_its_line() {
        for (text, why) in [
            (FILE, "line 3 of the zone file: a parenthesis is not closed"),
            (
                "$TTL 1h\na A 192.0.2.1\na 60 A 192.0.2.2",
                "line 3 of the zone file: a.example.test A has the TTLs 3600 and 60; a set of records has one",
            ),
            ("a A 192.0.2.1", "line 1 of the zone file: there is no TTL"),
            ("$INCLUDE other.db", "line 1 of the zone file: $INCLUDE is not read"),
            ("$TTL 1\na.other.net. A 192.0.2.1", "line 2 of the zone file: a.other.net is not in the zone example.test"),
            ("$TTL 1\na ADDR 192.0.2.1", "line 2 of the zone file: \"ADDR\" is not a type of record"),
            ("$TTL 1\n\n\na TXT \"x", "line 4 of the zone file: the quotes do not close"),
            ("$TTL 1\na CH TXT \"x\"", "line 2 of the zone file: the class CH is not read"),
            (" A 192.0.2.1", "line 1 of the zone file: the first record has no name"),
            ("$TTL 1\na A )", "line 2 of the zone file: a parenthesis is closed that was not opened"),
        ] {
            assert_eq!(read(&zone(), text).unwrap_err().message, why);
        }
    }

    #[test]
    fn a_file_is_changed_where_it_must_and_stays_as_people_wrote_it() {
        let text = "; our zone\n$TTL 1h\n@ IN SOA ns1 admin (\n   2024010101 ; serial\n   3h 1h 1w 2024010101 )\n  NS ns1\nns1 A 192.0.2.53 ; the server\n\
                    shop A 192.0.2.1\n     A 192.0.2.9\n     AAAA 2001:db8::1 ; stays\nold CNAME shop";
        let set = |n: &str, ty, v: &str| RrSet::new(name::owner(&zone(), n).unwrap(), ty, 60, vec![v.into()]);
        let have = read(&zone(), text).unwrap();
        let before = |n: &str, ty| have.iter().find(|s| s.name == name::owner(&zone(), n).unwrap() && s.ty == ty).cloned();
        let changes = [
            Change::to(before("shop", RecordType::A), set("shop", RecordType::A, "192.0.2.2")),
            Change::delete(before("old", RecordType::CNAME).unwrap()),
            Change::to(None, set("new", RecordType::A, "192.0.2.3")),
        ];
        let (made, serial) = edit(&zone(), text, &changes, "20261121").unwrap();
        assert_eq!(serial, 2_026_112_100);
        assert_eq!(
            made,
            "; our zone\n$TTL 1h\n@ IN SOA ns1 admin (\n   2026112100 ; serial\n   3h 1h 1w 2024010101 )\n  NS ns1\nns1 A 192.0.2.53 ; the server\n\
             shop.example.test.\t60\tIN\tA\t192.0.2.2\nshop.example.test.     AAAA 2001:db8::1 ; stays\nnew.example.test.\t60\tIN\tA\t192.0.2.3\n"
        );
        // Without $TTL a new line would change the TTL of what follows it: the whole file is written anew.
        let bare = "@ 300 SOA ns1 admin 7 2 3 4 5\n@ NS ns1\nns1 A 192.0.2.53\na A 192.0.2.1\nb A 192.0.2.2\n";
        let have = read(&zone(), bare).unwrap();
        let change = Change::to(have.iter().find(|s| s.label() == "a.example.test A").cloned(), set("a", RecordType::A, "192.0.2.7"));
        let (made, serial) = edit(&zone(), bare, &[change], "20261121").unwrap();
        assert!(serial == 8 && made.starts_with("$ORIGIN example.test.\nexample.test.\t300\tIN\tSOA\t"), "{made}");
        assert!(made.contains("b.example.test.\t300\tIN\tA\t192.0.2.2\n"), "{made}");
        assert_eq!(
            (next_serial(u32::MAX, "20261121"), next_serial(2_026_112_107, "20261121"), next_serial(1_700_000_000, "x")),
            (1, 2_026_112_108, 1_700_000_001)
        );
    }

    #[test]
    fn ttls_have_units() {
        assert_eq!(
            (ttl("1h30m"), ttl("2W"), ttl("90"), ttl("A"), ttl("1x"), ttl("h"), ttl("")),
            (Some(5400), Some(1_209_600), Some(90), None, None, None, None)
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-z$@().;\"\\\\ \t\n0-9A-Z]{0,120}") {
            let _ = read(&zone(), &text);
        }
    }
}
