//! What the documentation promises about itself: links lead somewhere, shell examples parse.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_tests::workspace::{files_ending, relative};
use holdfast_tests::{run, temp_dir};

/// Text of a page outside fenced blocks, and the fenced blocks with their language.
struct Page {
    path: PathBuf,
    prose: String,
    blocks: Vec<(String, String)>,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut page = Self { path, prose: String::new(), blocks: Vec::new() };
        let mut inside: Option<(String, String)> = None;
        for line in text.lines() {
            match (&mut inside, line.trim_start().strip_prefix("```")) {
                (None, Some(language)) => inside = Some((language.trim().to_owned(), String::new())),
                (Some(_), Some(_)) => page.blocks.extend(inside.take()),
                (Some((_, block)), None) => block.extend([line, "\n"]),
                (None, None) => page.prose.extend([line, "\n"]),
            }
        }
        assert!(inside.is_none(), "{} has a block without an end", relative(&page.path));
        page
    }

    fn all() -> Vec<Self> {
        files_ending(".md").into_iter().map(Self::read).collect()
    }

    /// Targets of inline links, external ones left out.
    fn links(&self) -> Vec<&str> {
        let mut links = Vec::new();
        for (at, _) in self.prose.match_indices("](") {
            let rest = &self.prose[at + 2..];
            let target = &rest[..rest.find(')').unwrap_or(rest.len())];
            if !target.contains("://") && !target.starts_with("mailto:") {
                links.push(target);
            }
        }
        links
    }

    /// The anchors of its headings, as common renderers make them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose.lines().filter(|line| line.starts_with('#'));
        headings.map(|heading| anchor(heading.trim_start_matches('#').trim())).collect()
    }
}

fn anchor(heading: &str) -> String {
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for page in Page::all() {
        for link in page.links() {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.path.clone(),
                file => page.path.parent().unwrap().join(file),
            };
            let anchored = fragment.is_empty() || has_anchor(&target, fragment);
            if !target.exists() || !anchored {
                broken.push(format!("{}: {link}", relative(&page.path)));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

fn has_anchor(target: &Path, fragment: &str) -> bool {
    target.is_file() && Page::read(target.to_owned()).anchors().contains(fragment)
}

#[test]
fn shell_examples_parse() {
    let folder = temp_dir("snippets");
    let script = folder.path().join("example.sh");
    for page in Page::all() {
        for (language, block) in
            page.blocks.iter().filter(|(language, _)| matches!(language.as_str(), "sh" | "bash"))
        {
            std::fs::write(&script, block).unwrap();
            let finished = run(Command::new("bash").arg("-n").arg(&script), Duration::from_secs(10));
            assert!(
                finished.status.success(),
                "an example ({language}) of {} does not parse: {}\n{block}",
                relative(&page.path),
                finished.stderr
            );
        }
    }
}

#[test]
fn shell_scripts_parse_and_stop_at_errors() {
    for path in files_ending(".sh") {
        drop(run(Command::new("bash").arg("-n").arg(&path), Duration::from_secs(10)).expect_success());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#!/"), "{} names no interpreter", relative(&path));
        assert!(text.contains("set -eu"), "{} goes on after an error", relative(&path));
    }
}
