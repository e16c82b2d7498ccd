//! "Did you mean": the closest of the names that exist.

/// The candidate closest to `name`, when one is close enough to be a slip of the fingers.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(&name.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_slips_only() {
        assert_eq!(super::closest("databse", ["database", "host"]), Some("database"));
        assert_eq!(super::closest("xyz", ["database", "host"]), None);
    }
}
