//! Places in a text: from byte offsets to lines and columns in characters.

use crate::error::Location;

/// A text with the name of its file.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub text: &'a str,
    pub file: &'a str,
}

impl Source<'_> {
    /// The place of a byte offset; beyond the end it is the end.
    pub fn locate(&self, offset: usize) -> Location {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = self.text.get(..offset).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Location {
            file: self.file.to_string(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let s = Source { text: "a\nöä = 1\n", file: "f" };
        let at = s.locate("a\nöä ".len());
        assert_eq!((at.line, at.column), (2, 4));
        assert_eq!((s.locate(999).line, s.locate(999).column), (3, 1));
        assert_eq!((s.locate(3).line, s.locate(3).column), (2, 1), "inside a character counts as its begin");
    }
}
