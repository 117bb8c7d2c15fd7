//! What somebody probably meant.

use holdfast_model::text::distance;

/// Words of other tools, and what they are called here.
const FOREIGN_WORDS: &[(&str, &str)] = &[
    ("check", "doctor"),
    ("config", "export"),
    ("describe", "backup show"),
    ("diagnose", "doctor"),
    ("dump", "backup run"),
    ("find", "backup show --files"),
    ("get", "backup list"),
    ("info", "status"),
    ("init", "repo add"),
    ("job", "run"),
    ("jobs", "run list"),
    ("log", "run logs"),
    ("login", "context add"),
    ("logs", "run logs"),
    ("ls", "backup list"),
    ("recover", "restore plan"),
    ("repository", "repo"),
    ("snapshot", "backup"),
    ("snapshots", "backup list"),
    ("verify", "backup verify"),
];

/// The command path nearest to what was typed, if any is near enough. `paths` are all there are, such as
/// `backup list`; `parent` is the part that was understood, such as `backup`.
pub(crate) fn command(typed: &str, parent: &str, paths: &[String]) -> Option<String> {
    let typed = typed.to_lowercase();
    if parent.is_empty()
        && let Some((_, ours)) = FOREIGN_WORDS.iter().find(|(word, _)| *word == typed)
    {
        return Some((*ours).to_owned());
    }
    // `list-backups`, `backups_list`: the same words in another order.
    let wanted = words(&format!("{parent} {typed}"));
    if let Some(path) = paths.iter().find(|path| words(path) == wanted) {
        return Some(path.clone());
    }
    let full = if parent.is_empty() { typed } else { format!("{parent} {typed}") };
    paths
        .iter()
        .filter(|path| parent.is_empty() || path.starts_with(parent))
        .map(|path| (distance(&full, path), path))
        .filter(|(distance, path)| *distance <= (path.len() / 4).clamp(1, 3))
        .min_by_key(|(distance, path)| (*distance, path.len()))
        .map(|(_, path)| path.clone())
}

/// The words of a command, sorted, without the plural.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| word.strip_suffix('s').filter(|word| word.len() > 2).unwrap_or(word).to_owned())
        .collect();
    words.sort();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Vec<String> {
        ["backup", "backup list", "backup run", "restore plan", "status", "source list", "doctor"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn the_same_words_in_another_order_are_found() {
        assert_eq!(command("list-backups", "", &paths()).as_deref(), Some("backup list"));
        assert_eq!(command("sources_list", "", &paths()).as_deref(), Some("source list"));
    }

    #[test]
    fn slips_of_the_finger_are_found() {
        assert_eq!(command("stauts", "", &paths()).as_deref(), Some("status"));
        assert_eq!(command("lsit", "backup", &paths()).as_deref(), Some("backup list"));
    }

    #[test]
    fn words_of_other_tools_are_translated() {
        assert_eq!(command("snapshots", "", &paths()).as_deref(), Some("backup list"));
    }

    #[test]
    fn nothing_is_suggested_for_anything_else() {
        assert_eq!(command("frobnicate", "", &paths()), None);
    }
}
