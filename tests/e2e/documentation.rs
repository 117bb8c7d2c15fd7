//! What the documentation promises about itself: links lead somewhere, shell examples parse.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_tests::wait::PATIENCE;
use holdfast_tests::workspace::{binary, files_ending, relative};
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
            let finished = run(Command::new("bash").arg("-n").arg(&script), PATIENCE);
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
        drop(run(Command::new("bash").arg("-n").arg(&path), PATIENCE).expect_success());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#!/"), "{} names no interpreter", relative(&path));
        assert!(text.contains("set -eu"), "{} goes on after an error", relative(&path));
    }
}

/// Our programs, and how many words of a command name what to do.
const PROGRAMS: &[(&str, usize)] = &[("holdfast", 2), ("holdfast-agent", 1), ("holdfast-controller", 1)];

/// Commands of ours in shell examples and in code spans, one per entry, each as its words.
fn commands_of(page: &Page) -> BTreeSet<Vec<String>> {
    let examples = page.blocks.iter().filter(|(language, _)| matches!(language.as_str(), "sh" | "bash"));
    let mut texts: Vec<String> = examples.map(|(_, block)| block.replace("\\\n", " ")).collect();
    texts.extend(page.prose.split('`').skip(1).step_by(2).map(str::to_owned));
    let lines = texts.iter().flat_map(|text| text.lines());
    let commands = lines.flat_map(|line| line.split(['|', ';', '&', '>', '<', '#']));
    let words = commands.map(|command| command.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    words
        .filter(|words| words.len() > 1 && PROGRAMS.iter().any(|(program, _)| *program == words[0]))
        .collect()
}

/// What the help of a command prints; nothing when there is no such command.
fn help(program: &str, path: &[String]) -> Option<String> {
    let finished = run(Command::new(binary(program)).args(path).arg("--help"), PATIENCE);
    finished.status.success().then_some(finished.stdout)
}

#[test]
fn commands_in_examples_exist_with_their_flags() {
    let mut wrong = Vec::new();
    for page in Page::all() {
        for words in commands_of(&page) {
            let (program, path_words) = PROGRAMS.iter().find(|(program, _)| *program == words[0]).unwrap();
            let named =
                words[1..].iter().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
            let path: Vec<String> =
                named.filter(|word| !word.starts_with('-')).take(*path_words).cloned().collect();
            // The second word may be an argument: `holdfast status pg-main`.
            let help = help(program, &path).or_else(|| help(program, &path[..path.len().min(1)]));
            let flags = words
                .iter()
                .filter(|word| word.starts_with("--"))
                .map(|flag| flag.split('=').next().unwrap());
            let place = format!("{}: {}", relative(&page.path), words.join(" "));
            match help {
                None => wrong.push(place),
                Some(help) => wrong.extend(
                    flags
                        .filter(|flag| !help.contains(*flag))
                        .map(|flag| format!("{place}: there is no {flag}")),
                ),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
