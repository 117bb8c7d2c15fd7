//! What the programs suggest can be pasted: every command in a text of theirs is one that this command line reads.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use holdfast::args::Cli;

/// Where the texts are.
const SOURCES: [&str; 5] = ["agent/src", "cli/src", "controller/src", "crates", "proto/src"];

/// The command line's own helps are tested where they are written; what is typed wrong is wrong on purpose.
const LEFT_OUT: [&str; 2] = ["cli/src/args", "cli/src/usage.rs"];

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is part of the tree") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
}

/// Text literals that begin with a command, up to their end, a comment or a redirection.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, opening) in text.match_indices("\"holdfast ") {
        let rest = &text[at + 1..];
        let end = rest.match_indices('"').find(|(end, _)| !rest[..*end].ends_with('\\')).map(|(end, _)| end);
        let mut command = &rest[..end.unwrap_or(opening.len())];
        for cut in [" # ", " > ", "    "] {
            command = command.split(cut).next().unwrap_or_default();
        }
        found.push(command.trim().to_owned());
    }
    found
}

/// The words of a command, with something that fits every place for what is filled in.
fn words(command: &str) -> Vec<String> {
    let mut filled = String::new();
    let mut depth = 0;
    for c in command.chars() {
        match c {
            '{' => {
                depth += 1;
                filled.push_str("12345678");
            }
            '}' => depth -= 1,
            c if depth == 0 => filled.push(c),
            _ => {}
        }
    }
    let filled = filled.replace("ENGINE", "sqlite").replace('…', "");
    filled.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Words that look like a command and are none: names of spans, texts of tests, titles.
fn is_a_command(words: &[String]) -> bool {
    use clap::CommandFactory as _;
    words.get(1).is_some_and(|word| Cli::command().find_subcommand(word).is_some())
}

#[test]
fn every_command_that_is_suggested_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for folder in SOURCES {
        rust_files(&root.join(folder), &mut files);
    }
    let mut wrong = Vec::new();
    let mut tried = 0;
    for file in files.iter().filter(|file| !LEFT_OUT.iter().any(|place| file.starts_with(root.join(place)))) {
        for command in commands(&std::fs::read_to_string(file).unwrap()) {
            let words = words(&command);
            // A noun alone is the name of a span.
            if words.len() < 3 || !is_a_command(&words) {
                continue;
            }
            tried += 1;
            if let Err(error) = Cli::try_parse_from(&words) {
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                wrong.push(format!("{}: {command}: {reason}", file.strip_prefix(root).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tried > 50, "{tried}");
}
