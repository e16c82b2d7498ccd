//! What is compiled in: the pages of the error codes and the files of the demo's runbook. The tables are made by `build.rs`.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The page of an error code.
pub fn page(code: runbook_core::Code) -> Option<&'static str> {
    let name = format!("{code}.md");
    PAGES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use runbook_core::Code;

    #[test]
    fn every_page_begins_with_its_codes_title() {
        for (code, _, title) in Code::ALL {
            let page = super::page(*code).unwrap_or_default();
            assert_eq!(page.lines().next(), Some(format!("# {code}: {title}").as_str()));
            assert!(page.contains(&format!("error[{code}]")), "{code} has no example");
        }
        assert_eq!(super::PAGES.iter().filter(|(n, _)| n.starts_with("RB")).count(), Code::ALL.len(), "a page without a code");
    }
}
