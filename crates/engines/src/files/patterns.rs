//! Which files of a tree are taken: the patterns of a file source.
//!
//! The rules are those of `.gitignore`, each pattern on its own:
//!
//! * without a `/` (one at the end does not count) a pattern matches a name at any depth; with one it is anchored at
//!   the configured path, for each of them;
//! * `*` matches within a name, `**` across folders, `?` one character, `[a-z]` one of a set; case matters;
//! * a `/` at the end makes it match folders only;
//! * among several that match the last one decides, and `!` in front turns one around;
//! * `\#` and `\!` at the beginning stand for the characters themselves.
//!
//! What matches `exclude` is left out, a folder with everything in it. When `include` is given, a file, link or device
//! is taken only if it, or a folder that it lies in, matches; folders are kept in any case, so that what is taken
//! lies where it lay. The configured paths themselves are always taken.

use std::path::Path;

use holdfast_model::ErrorCode;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::EngineError;

/// The patterns of a source, compiled.
#[derive(Debug)]
pub(crate) struct Patterns {
    exclude: Option<Gitignore>,
    include: Option<Gitignore>,
}

impl Patterns {
    /// Compiles them.
    ///
    /// # Errors
    /// `HF-1012` names the first that is not valid.
    pub(crate) fn new(exclude: &[String], include: &[String]) -> Result<Self, EngineError> {
        Ok(Self { exclude: compile(exclude)?, include: compile(include)? })
    }

    /// Whether this is left out. `relative` is relative to the configured path that it lies in.
    pub(crate) fn excludes(&self, relative: &Path, is_folder: bool) -> bool {
        self.exclude.as_ref().is_some_and(|patterns| patterns.matched(relative, is_folder).is_ignore())
    }

    /// Whether this is taken, if no folder that it lies in is.
    pub(crate) fn includes(&self, relative: &Path, is_folder: bool) -> bool {
        self.include.as_ref().is_none_or(|patterns| patterns.matched(relative, is_folder).is_ignore())
    }
}

fn compile(patterns: &[String]) -> Result<Option<Gitignore>, EngineError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let refused = |pattern: &str, why: &str| {
        EngineError::new(ErrorCode::PathInvalid, format!("the pattern {pattern:?} is not valid: {why}"))
    };
    let mut builder = GitignoreBuilder::new("");
    builder.allow_unclosed_class(false);
    for pattern in patterns {
        // In a file of patterns these lines say nothing; in a list they can only be mistakes.
        if pattern.trim().is_empty() {
            return Err(refused(pattern, "it is empty"));
        }
        if pattern.starts_with('#') {
            return Err(refused(pattern, "it begins with #, write \\# for the character itself"));
        }
        if pattern.contains(['\n', '\0']) {
            return Err(refused(pattern, "it holds a newline or a zero byte"));
        }
        builder.add_line(None, pattern).map_err(|error| refused(pattern, &error.to_string()))?;
    }
    builder.build().map(Some).map_err(|error| refused(&patterns.join(" "), &error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn exclude(patterns: &[&str]) -> Patterns {
        Patterns::new(&patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>(), &[]).unwrap()
    }

    #[test]
    fn a_pattern_without_a_slash_matches_a_name_anywhere() {
        let patterns = exclude(&["*.tmp", "cache/"]);
        assert!(patterns.excludes(Path::new("a.tmp"), false));
        assert!(patterns.excludes(Path::new("deep/er/a.tmp"), false));
        assert!(patterns.excludes(Path::new("deep/cache"), true));
        assert!(!patterns.excludes(Path::new("deep/cache"), false), "a file called cache is no folder");
        assert!(!patterns.excludes(Path::new("a.tmpx"), false));
        assert!(!patterns.excludes(Path::new("A.TMP"), false));
    }

    #[test]
    fn a_pattern_with_a_slash_is_anchored() {
        let patterns = exclude(&["/top.log", "logs/*.gz", "**/build/out"]);
        assert!(patterns.excludes(Path::new("top.log"), false));
        assert!(!patterns.excludes(Path::new("sub/top.log"), false));
        assert!(patterns.excludes(Path::new("logs/a.gz"), false));
        assert!(!patterns.excludes(Path::new("logs/old/a.gz"), false));
        assert!(!patterns.excludes(Path::new("sub/logs/a.gz"), false));
        assert!(patterns.excludes(Path::new("x/y/build/out"), true));
    }

    #[test]
    fn the_last_match_decides() {
        let patterns = exclude(&["*.log", "!keep.log", "\\#x", "\\!y"]);
        assert!(patterns.excludes(Path::new("a.log"), false));
        assert!(!patterns.excludes(Path::new("sub/keep.log"), false));
        assert!(patterns.excludes(Path::new("#x"), false));
        assert!(patterns.excludes(Path::new("!y"), false));
    }

    #[test]
    fn names_that_are_not_utf8_are_matched() {
        let patterns = exclude(&["*.tmp"]);
        assert!(patterns.excludes(Path::new(OsStr::from_bytes(b"\xff\xfe.tmp")), false));
        assert!(patterns.excludes(Path::new("new\nline.tmp"), false));
        assert!(!patterns.excludes(Path::new(OsStr::from_bytes(b"\xff")), false));
    }

    #[test]
    fn without_include_everything_is_included() {
        assert!(exclude(&["x"]).includes(Path::new("a"), false));
        let patterns = Patterns::new(&[], &["*.conf".into()]).unwrap();
        assert!(patterns.includes(Path::new("etc/a.conf"), false));
        assert!(!patterns.includes(Path::new("etc/a.txt"), false));
    }

    #[test]
    fn a_pattern_that_is_not_valid_is_named() {
        for (pattern, message) in [
            ("", "the pattern \"\" is not valid: it is empty"),
            ("# x", "the pattern \"# x\" is not valid: it begins with #, write \\# for the character itself"),
            ("a\nb", "the pattern \"a\\nb\" is not valid: it holds a newline or a zero byte"),
        ] {
            let error = Patterns::new(&[pattern.to_owned()], &[]).unwrap_err();
            assert_eq!((error.code(), error.to_string()), (ErrorCode::PathInvalid, message.to_owned()));
        }
        let error = Patterns::new(&[], &["a[".into()]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PathInvalid);
        assert!(error.to_string().starts_with("the pattern \"a[\" is not valid: "), "{error}");
    }
}
