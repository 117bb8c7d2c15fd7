use super::*;

fn read(text: &str) -> Result<Fleet, Vec<FleetError>> {
    read_fleet(&[FleetFile { name: "fleet.yaml".to_owned(), text: text.to_owned() }])
}

fn only_error(text: &str) -> (ErrorCode, String) {
    let errors = read(text).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    (errors[0].code, errors[0].to_string())
}

const GOOD: &str = r#"
api: holdfast/v1
repositories:
  main: { url: "file:///var/lib/holdfast/repo", encryption: { key: { file: /etc/holdfast/main.key } } }
sources:
  pg-main: { engine: postgres, agent: db1, connect: { host: 127.0.0.1, port: 5438, user: holdfast, password: { file: /etc/holdfast/pg.pass } }, labels: { env: prod } }
  cache-db: { engine: sqlite, agent: app1, path: /srv/app/db.sqlite3 }
  images: { engine: files, agent: app1, paths: [/srv/app/images], exclude: ["*.tmp"], to: [main] }
agents:
  db1: { labels: { site: fra } }
"#;

#[test]
fn an_exported_fleet_reads_back_unchanged() {
    let fleet = read(GOOD).unwrap();
    assert_eq!(fleet.sources.len(), 3);
    assert_eq!(read(&to_yaml(&fleet)).unwrap(), fleet, "{}", to_yaml(&fleet));
}

#[test]
fn an_unknown_key_is_named_with_line_and_column() {
    let (code, message) =
        only_error("api: holdfast/v1\nsources:\n  a: { engine: sqlite, agent: x, pth: /a }\n");
    assert_eq!(code, ErrorCode::FileUnknownKey);
    assert!(message.starts_with("fleet.yaml:3:"), "{message}");
    assert!(message.contains("pth"), "{message}");
}

#[test]
fn a_duplicate_key_is_refused() {
    let (code, message) = only_error("api: holdfast/v1\nagents:\n  a: {}\n  a: {}\n");
    assert_eq!(code, ErrorCode::FileDuplicateKey);
    assert!(message.starts_with("fleet.yaml:4:"), "{message}");
}

#[test]
fn a_secret_in_plain_text_is_refused_and_not_repeated() {
    let (code, message) = only_error(
        "api: holdfast/v1\nrepositories:\n  main: { url: \"file:///r\", encryption: { key: canary-7f } }\n",
    );
    assert_eq!(code, ErrorCode::PlaintextSecret, "{message}");
    assert!(!message.contains("canary-7f"), "{message}");
}

#[test]
fn a_key_of_another_engine_is_refused() {
    let (code, message) =
        only_error("api: holdfast/v1\nsources:\n  a: { engine: sqlite, agent: x, path: /a, paths: [/b] }\n");
    assert_eq!(code, ErrorCode::FileInvalid);
    assert!(message.contains("`paths` does not apply to a source with engine sqlite"), "{message}");
}

#[test]
fn relative_paths_and_parent_folders_are_refused() {
    for path in ["relative", "/a/../b", "\"~\"", "\"\""] {
        let (_, message) = only_error(&format!(
            "api: holdfast/v1\nsources:\n  a: {{ engine: sqlite, agent: x, path: {path} }}\n"
        ));
        assert!(message.contains("absolute paths without `..` are needed"), "{path}: {message}");
    }
}

#[test]
fn two_files_that_define_the_same_name_are_refused() {
    let file = |name: &str| FleetFile {
        name: name.to_owned(),
        text: "api: holdfast/v1\nagents: { a: {} }".to_owned(),
    };
    let errors = read_fleet(&[file("one.yaml"), file("two.yaml")]).unwrap_err();
    assert_eq!(errors[0].to_string(), "two.yaml: agent a is defined in one.yaml already");
}

#[test]
fn a_repository_within_another_is_refused() {
    let (_, message) = only_error(
        "api: holdfast/v1\nrepositories:\n  a: { url: \"file:///r\", encryption: { key: { env: A } } }\n  b: { url: \"file:///r/x\", encryption: { key: { env: A } } }\n",
    );
    assert_eq!(message, "fleet.yaml:4:6: repositories.b: `url` lies at or within the place of repository a");
}

#[test]
fn an_alias_bomb_ends_quickly_with_an_error() {
    let mut text = "api: holdfast/v1\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(read(&text).is_err());
}

#[test]
fn an_unknown_repository_is_named() {
    let fleet =
        read("api: holdfast/v1\nsources:\n  a: { engine: sqlite, agent: x, path: /a, to: [nowhere] }\n")
            .unwrap();
    let errors = fleet.check_references(&Fleet::default());
    assert_eq!(errors[0].to_string(), "sources.a: `to` names repository nowhere, which does not exist");
}

#[test]
fn a_diff_names_what_changes_and_marks_what_is_dangerous() {
    let current = read(GOOD).unwrap();
    let mut wanted = current.clone();
    wanted.sources.remove(&SourceName::new("images").unwrap());
    wanted.repositories.values_mut().for_each(|spec| spec.compression_level = 9);
    assert_eq!(diff(&current, &current, true), []);
    let changes = diff(&current, &wanted, true);
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0].details, ["compression_level: 3 → 9"]);
    assert!(!changes[0].dangerous && changes[1].dangerous);
    assert_eq!(diff(&current, &wanted, false).len(), 1, "without prune nothing is removed");
}
