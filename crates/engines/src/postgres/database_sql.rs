//! The SQL of an archive that concerns the database itself: `pg_restore` applies it only when it makes the database
//! under its old name, so a restore under a new name rewrites and runs it here.

use super::quote::{dumped_spellings, identifier};

/// Splits SQL as `pg_dump` writes it into statements, with the name of the database replaced wherever it follows the
/// word `DATABASE`.
pub(crate) fn statements_for(sql: &str, old: &str, new: &str) -> Vec<String> {
    let names = dumped_spellings(old);
    let mut statements = Vec::new();
    let mut statement = String::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = strip_database(rest, &names, &statement) {
            statement.push_str("DATABASE ");
            statement.push_str(&identifier(new));
            rest = after;
            continue;
        }
        let length = match c {
            '\'' | '"' => quoted_length(rest, c),
            c => c.len_utf8(),
        };
        if c == ';' {
            statements.push(std::mem::take(&mut statement).trim().to_owned());
        } else {
            statement.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    statements.push(statement.trim().to_owned());
    statements.retain(|statement| !statement.is_empty());
    statements
}

/// What follows `DATABASE name`, when the text begins with that and a word begins there.
fn strip_database<'a>(text: &'a str, names: &[String], before: &str) -> Option<&'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if before.ends_with(is_word) {
        return None;
    }
    let after = text.strip_prefix("DATABASE ")?;
    names.iter().find_map(|name| {
        let rest = after.strip_prefix(name.as_str())?;
        (!rest.starts_with(is_word)).then_some(rest)
    })
}

/// Length of the quoted text at the beginning; a doubled quote does not end it.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut inside = text[1..].char_indices().peekable();
    while let Some((at, c)) = inside.next() {
        if c != quote {
            continue;
        }
        if inside.peek().is_some_and(|&(_, next)| next == quote) {
            inside.next();
        } else {
            return 1 + at + 1;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_renamed_and_its_settings_are_kept() {
        let sql = "ALTER DATABASE \"my db\" CONNECTION LIMIT = 7;\n\
                   ALTER DATABASE \"my db\" SET search_path TO 'x; DATABASE \"my db\"', 'it''s';\n\
                   ALTER ROLE app IN DATABASE \"my db\" SET work_mem TO '1MB';\n";
        assert_eq!(
            statements_for(sql, "my db", "new \"one\""),
            [
                "ALTER DATABASE \"new \"\"one\"\"\" CONNECTION LIMIT = 7",
                "ALTER DATABASE \"new \"\"one\"\"\" SET search_path TO 'x; DATABASE \"my db\"', 'it''s'",
                "ALTER ROLE app IN DATABASE \"new \"\"one\"\"\" SET work_mem TO '1MB'",
            ]
        );
    }

    #[test]
    fn plain_names_are_found_as_whole_words_only() {
        assert_eq!(
            statements_for("CREATE DATABASE shop WITH TEMPLATE = template0;", "shop", "b"),
            ["CREATE DATABASE \"b\" WITH TEMPLATE = template0"]
        );
        assert_eq!(statements_for("COMMENT ON DATABASE shopping IS 'a'", "shop", "b").len(), 1);
        assert!(statements_for("DROP DATABASE shopping", "shop", "b")[0].ends_with("shopping"));
    }

    #[test]
    fn an_open_quote_ends_with_the_text() {
        assert_eq!(statements_for("SELECT 'ü;", "a", "b"), ["SELECT 'ü;"]);
        assert_eq!(statements_for("", "a", "b"), Vec::<String>::new());
    }
}
