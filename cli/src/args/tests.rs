use clap::{ArgAction, Command as Parsed, CommandFactory as _};

use super::*;

/// Examples stand as they are written up to here.
const HELP_COLUMNS_MAX: usize = 100;

fn every_command(visit: &mut dyn FnMut(&str, &Parsed)) {
    fn walk(command: &Parsed, path: &str, visit: &mut dyn FnMut(&str, &Parsed)) {
        visit(path, command);
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            walk(sub, &format!("{path} {}", sub.get_name()), visit);
        }
    }
    let mut root = Cli::command();
    root.build();
    walk(&root, "holdfast", visit);
}

/// The commands of an example: what stands behind the indent, without comment, pipe and redirection.
fn examples(help: &str) -> Vec<Vec<String>> {
    let joined = help.replace("\\\n", " ");
    joined
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.contains("holdfast "))
        .map(words)
        .collect()
}

/// Splits as a shell would, up to a comment (two blanks), pipe or redirection; begins at `holdfast`.
fn words(line: &str) -> Vec<String> {
    let start = line.find("holdfast ").expect("the line was chosen for it");
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut blanks = 0;
    for c in line[start..].chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.push(c),
            (None, '"' | '\'') => quote = Some(c),
            (None, '|' | '>') => break,
            (None, ' ') => {
                blanks += 1;
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, c) => {
                // A comment begins after a gap; the gap of a joined line is followed by a flag.
                if blanks > 1 && c != '-' {
                    break;
                }
                word.push(c);
            }
        }
        blanks = 0;
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn the_tree_of_commands_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_and_every_argument_is_explained() {
    let mut commands = 0;
    every_command(&mut |path, command| {
        commands += 1;
        assert!(command.get_about().is_some(), "{path} says nothing about itself");
        let help = command.clone().render_long_help().to_string();
        assert!(help.contains("Usage:"), "{path}");
        for argument in command.get_arguments() {
            let explained = argument.get_help().is_some_and(|help| !help.to_string().is_empty());
            assert!(explained, "{path}: {} is not explained", argument.get_id());
        }
    });
    assert!(commands > 50, "{commands}");
}

#[test]
fn the_commands_are_those_that_were_promised() {
    let mut paths = Vec::new();
    every_command(&mut |path, command| {
        if !command.has_subcommands() {
            paths.push(path.trim_start_matches("holdfast ").to_owned());
        }
    });
    paths.sort();
    insta::assert_snapshot!(paths.join("\n"), @r#"
    agent enroll
    agent list
    agent revoke
    alert ack
    alert list
    alert show
    alert silence
    alert unsilence
    apply
    audit list
    audit verify
    backup delete
    backup export
    backup hold
    backup import
    backup list
    backup release
    backup run
    backup show
    backup verify
    completion
    context add
    context list
    context remove
    context show
    context use
    demo
    diff
    doctor
    explain
    export
    init
    man
    notify history
    notify list
    notify preview
    notify test
    policy cleanup
    policy list
    policy next
    policy show
    policy simulate
    repo add
    repo check
    repo copy
    repo list
    repo prune
    repo usage
    report daily
    report logs
    report weekly
    restore discard
    restore list
    restore plan
    restore promote
    restore run
    restore show
    run cancel
    run list
    run logs
    run retry
    run show
    run watch
    schema
    source add
    source debug
    source discover
    source list
    source pause
    source remove
    source resume
    source show
    source test
    status
    validate
    version
    whoami
    "#);
}

#[test]
fn every_example_of_a_help_text_is_a_command_that_exists() {
    let mut tried = 0;
    every_command(&mut |path, command| {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in after.lines().filter(|line| line.starts_with("  ")) {
            assert!(line.len() <= HELP_COLUMNS_MAX, "an example of {path} would be wrapped: {line}");
        }
        for example in examples(&after) {
            tried += 1;
            if let Err(error) = Cli::try_parse_from(&example) {
                panic!("an example of {path} is not valid: {example:?}\n{error}");
            }
        }
    });
    assert!(tried > 50, "{tried}");
}

#[test]
fn a_token_can_not_be_an_argument() {
    every_command(&mut |path, command| {
        for argument in command.get_arguments() {
            let long = argument.get_long().unwrap_or_default();
            let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
            let secret = ["token", "password", "secret"].iter().any(|word| long.contains(word));
            let reference = ["-file", "-env", "-stdin"].iter().any(|end| long.ends_with(end));
            assert!(!(secret && takes_value) || reference, "{path} takes a secret in --{long}");
        }
    });
}

#[test]
fn an_export_takes_a_file_where_others_take_a_format() {
    let export =
        Cli::try_parse_from(["holdfast", "backup", "export", "latest", "-o", "shop.tar.zst"]).unwrap();
    match export.command {
        Command::Backup(backup::BackupCommand::Export(args)) => assert_eq!(args.file, "shop.tar.zst"),
        other => panic!("{other:?}"),
    }
    assert!(Cli::try_parse_from(["holdfast", "backup", "export", "latest"]).is_err());
    assert!(Cli::try_parse_from(["holdfast", "backup", "list", "-o", "shop.tar.zst"]).is_err());
}

#[test]
fn contradictions_are_refused() {
    for line in [
        "restore plan shop --into x --in-place",
        "restore plan shop --delta",
        "restore plan shop --in-place --delta --only x",
        "restore run",
        "restore run shop --plan 12",
        "backup run",
        "backup run shop --all",
        "repo add main --url file:///x",
        "repo add main --url file:///x --key-file /k --key-env K",
        "agent enroll db1 --ttl 2h",
        "backup show 3f2a91bc --recursive",
        "doctor --source a --agent b",
    ] {
        let arguments = ["holdfast"].into_iter().chain(line.split(' '));
        assert!(Cli::try_parse_from(arguments).is_err(), "{line:?} was accepted");
    }
}
