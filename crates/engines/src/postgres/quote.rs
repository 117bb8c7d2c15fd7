//! Names and values as SQL, libpq, password files and file systems want them.
//!
//! PostgreSQL names are any bytes but NUL: spaces, quotes, line breaks, leading dashes, `=` and `://` included.
//! Everything that leaves this package with such a name in it goes through here.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Longest identifier in bytes that a server built with default settings keeps (`NAMEDATALEN - 1`).
pub(crate) const IDENTIFIER_BYTES_MAX: usize = 63;

/// How many hex digits tell two shortened names apart.
const SHORTENED_DIGITS: usize = 6;

/// An SQL identifier, always quoted.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A qualified SQL identifier, always quoted.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// An SQL string literal, right under either setting of `standard_conforming_strings`.
pub(crate) fn literal(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// How people and manifests write a qualified name: quotes only where a name is not plain lower case.
pub(crate) fn readable(schema: &str, name: &str) -> String {
    format!("{}.{}", readable_part(schema), readable_part(name))
}

fn readable_part(name: &str) -> String {
    let mut bytes = name.bytes();
    let plain = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'$');
    if plain { name.to_owned() } else { identifier(name) }
}

/// An identifier as `pg_dump` writes it: `fmtId` quotes only what needs it, keywords included, so both spellings of a
/// plain name may occur in an archive.
pub(crate) fn dumped_spellings(name: &str) -> [String; 2] {
    [identifier(name), name.to_owned()]
}

/// A libpq connection string. Values are quoted, so that none is taken for a keyword or an address.
pub(crate) fn conninfo(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push(' ');
        }
        let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
        write!(text, "{key}='{escaped}'").expect("writing to a string cannot fail");
    }
    text
}

/// The one line of a libpq password file that gives this password to every connection, or `None` when the password
/// cannot be written there because it holds a line break.
pub(crate) fn passfile_line(password: &str) -> Option<String> {
    if password.contains(['\n', '\r', '\0']) {
        return None;
    }
    Some(format!("*:*:*:*:{}\n", password.replace('\\', "\\\\").replace(':', "\\:")))
}

/// A database name as a file name: every byte but letters, digits, `_`, `-` and inner `.` as `%XX`.
pub(crate) fn file_name(database: &str) -> String {
    let mut text = String::with_capacity(database.len());
    for (position, byte) in database.bytes().enumerate() {
        let kept =
            byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' || (byte == b'.' && position > 0);
        if kept {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    text
}

/// `base` followed by `suffix`, as one identifier the server keeps whole. Where `base` must be cut, digits of its hash
/// follow, so that two long names with one beginning stay two names.
pub(crate) fn suffixed(base: &str, suffix: &str) -> String {
    if base.len() + suffix.len() <= IDENTIFIER_BYTES_MAX {
        return format!("{base}{suffix}");
    }
    let digest = hex::encode(Sha256::digest(base.as_bytes()));
    let mark = format!("~{}", &digest[..SHORTENED_DIGITS]);
    let mut room = IDENTIFIER_BYTES_MAX.saturating_sub(suffix.len() + mark.len()).min(base.len());
    while !base.is_char_boundary(room) {
        room -= 1;
    }
    format!("{}{mark}{suffix}", &base[..room])
}

/// A name safe to print in one line of a log or an error: control characters escaped, length bounded.
pub(crate) fn printable(name: &str) -> String {
    const CHARS_MAX: usize = 120;
    let mut text = String::new();
    for (position, c) in name.chars().enumerate() {
        if position == CHARS_MAX {
            text.push('…');
            break;
        }
        if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_and_literals_cannot_be_left() {
        assert_eq!(identifier(r#"a"; DROP TABLE x; --"#), r#""a""; DROP TABLE x; --""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"back\slash'"), r"E'back\\slash'''");
    }

    #[test]
    fn plain_names_read_plain_and_odd_names_are_quoted() {
        assert_eq!(readable("public", "orders"), "public.orders");
        assert_eq!(readable("public", "My.Table"), "public.\"My.Table\"");
        assert_eq!(readable("1st", ""), "\"1st\".\"\"");
    }

    #[test]
    fn a_database_name_is_never_taken_for_a_connection_string() {
        assert_eq!(conninfo(&[("dbname", "host=evil dbname=x")]), "dbname='host=evil dbname=x'");
        assert_eq!(conninfo(&[("host", "/tmp"), ("dbname", r"a'b\c")]), r"host='/tmp' dbname='a\'b\\c'");
    }

    #[test]
    fn a_password_with_a_line_break_has_no_line() {
        assert_eq!(passfile_line(r"a:b\c").as_deref(), Some("*:*:*:*:a\\:b\\\\c\n"));
        assert_eq!(passfile_line("a\nb"), None);
    }

    #[test]
    fn file_names_hold_no_separator_and_no_leading_dot() {
        assert_eq!(file_name("shop"), "shop");
        assert_eq!(file_name("../a b"), "%2E.%2Fa%20b");
        assert_eq!(file_name("ü\n%"), "%C3%BC%0A%25");
    }

    #[test]
    fn long_names_are_cut_at_a_character_and_stay_apart() {
        let first = suffixed(&format!("{}a", "ü".repeat(31)), "_restored_0123abcd");
        let second = suffixed(&format!("{}b", "ü".repeat(31)), "_restored_0123abcd");
        assert!(first.len() <= IDENTIFIER_BYTES_MAX && first.ends_with("_restored_0123abcd"), "{first}");
        assert_ne!(first, second);
        assert_eq!(suffixed("shop", "_restored_0123abcd"), "shop_restored_0123abcd");
    }

    proptest! {
        #[test]
        fn a_suffixed_name_always_fits(base in "\\PC{0,80}", suffix in "[a-z_0-9]{0,40}") {
            prop_assert!(suffixed(&base, &suffix).len() <= IDENTIFIER_BYTES_MAX);
        }

        #[test]
        fn different_names_make_different_file_names(a in "\\PC{0,20}", b in "\\PC{0,20}") {
            prop_assert_eq!(a == b, file_name(&a) == file_name(&b));
        }
    }
}
