//! What somebody probably meant.

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

/// How many letters must be inserted, removed, replaced or exchanged with their neighbour.
pub(crate) fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().collect();
    let other: Vec<char> = other.chars().collect();
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (index, row) in rows.iter_mut().enumerate() {
        row[0] = index;
    }
    rows[0] = (0..=other.len()).collect();
    for i in 1..=one.len() {
        for j in 1..=other.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[one.len()][other.len()]
}

/// The name nearest to what was typed, among names that exist.
pub(crate) fn name<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (distance(typed, name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 3))
        .min()
        .map(|(_, name)| name)
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
        assert_eq!(name("zzz", ["prod", "staging"]), None);
        assert_eq!(name("prd", ["prod", "staging"]), Some("prod"));
    }
}
