use super::*;

fn contexts(names: &[&str], current: Option<&str>) -> Contexts {
    Contexts {
        current: current.map(str::to_owned),
        contexts: names
            .iter()
            .map(|name| {
                let context = Context {
                    server: format!("https://{name}:7443"),
                    ca_file: PathBuf::from(format!("/ca/{name}.pem")),
                    token_file: Some(PathBuf::from(format!("/token/{name}"))),
                };
                ((*name).to_owned(), context)
            })
            .collect(),
    }
}

fn with_variable(name: &str, value: &str) -> Surroundings {
    Surroundings {
        variables: BTreeMap::from([(name.to_owned(), value.to_owned())]),
        ..Surroundings::default()
    }
}

fn chosen(choice: &ConnectionChoice, contexts: &Contexts) -> CliResult<Connection> {
    choose(choice, contexts, &Surroundings::default())
}

#[test]
fn the_file_reads_back_as_it_was_written_and_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holdfast/contexts.yaml");
    assert_eq!(load(&path).unwrap(), Contexts::default());
    let written = contexts(&["prod", "staging"], Some("prod"));
    save(&path, &written).unwrap();
    assert_eq!(load(&path).unwrap(), written);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_others_may_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("contexts.yaml");
    save(&path, &contexts(&["prod"], None)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = load(&path).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileInvalid);
    assert!(error.failure().next[0].starts_with("chmod 600 "));
}

#[test]
fn an_unknown_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("contexts.yaml");
    write_private(&path, b"contexts:\n  prod: { server: x, ca_file: y, token: secret }\n").unwrap();
    assert_eq!(load(&path).unwrap_err().code(), ErrorCode::FileUnknownKey);
}

#[test]
fn a_token_file_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write_private(&path, b"hf_abc\n").unwrap();
    assert_eq!(TokenPlace::File(path.clone()).read().unwrap().reveal(), "hf_abc");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(TokenPlace::File(path).read().unwrap_err().code(), ErrorCode::SecretUnresolvable);
}

#[test]
fn a_token_with_a_line_break_is_refused_and_not_repeated() {
    let place = TokenPlace::Variable(Secret::new("canary\nx-evil: 1"));
    let error = place.read().unwrap_err();
    assert!(!error.to_string().contains("canary"));
}

#[test]
fn an_explicit_server_needs_its_ca_and_ignores_contexts() {
    let all = contexts(&["prod"], Some("prod"));
    let server =
        ConnectionChoice { server: Some("https://ci:7443".to_owned()), ..ConnectionChoice::default() };
    assert_eq!(chosen(&server, &all).unwrap_err().code(), ErrorCode::ContextMissing);
    let complete = ConnectionChoice { ca_file: Some(PathBuf::from("/ca.pem")), ..server };
    let connection = chosen(&complete, &all).unwrap();
    assert_eq!((connection.server.as_str(), connection.token), ("https://ci:7443", TokenPlace::Nowhere));
}

#[test]
fn the_named_context_comes_before_the_current_and_the_only_one() {
    let all = contexts(&["prod", "staging"], Some("prod"));
    let by_name = ConnectionChoice { context: Some("staging".to_owned()), ..ConnectionChoice::default() };
    assert_eq!(chosen(&by_name, &all).unwrap().context.as_deref(), Some("staging"));
    assert_eq!(chosen(&ConnectionChoice::default(), &all).unwrap().context.as_deref(), Some("prod"));
    let only = contexts(&["lab"], None);
    assert_eq!(chosen(&ConnectionChoice::default(), &only).unwrap().context.as_deref(), Some("lab"));
    let none_current = contexts(&["prod", "staging"], None);
    assert_eq!(
        chosen(&ConnectionChoice::default(), &none_current).unwrap_err().code(),
        ErrorCode::ContextMissing
    );
}

#[test]
fn a_misspelt_context_is_guessed() {
    let all = contexts(&["prod", "staging"], None);
    let error = unknown("prd", &all);
    assert_eq!(error.failure().why, ["did you mean \"prod\"?"]);
}

#[test]
fn a_flag_comes_before_the_variable_and_the_variable_before_the_context() {
    let all = contexts(&["prod"], Some("prod"));
    let surroundings = with_variable(TOKEN_VARIABLE, "hf_env");
    let from_variable = choose(&ConnectionChoice::default(), &all, &surroundings).unwrap();
    assert_eq!(from_variable.token, TokenPlace::Variable(Secret::new("hf_env")));
    let flag = ConnectionChoice { token_file: Some(PathBuf::from("/t")), ..ConnectionChoice::default() };
    assert_eq!(choose(&flag, &all, &surroundings).unwrap().token, TokenPlace::File(PathBuf::from("/t")));
}

#[test]
fn the_place_of_the_file_follows_the_environment() {
    assert_eq!(
        file_path(&with_variable("HOME", "/home/a")).unwrap(),
        Path::new("/home/a/.config/holdfast/contexts.yaml")
    );
    assert_eq!(
        file_path(&with_variable("XDG_CONFIG_HOME", "/c")).unwrap(),
        Path::new("/c/holdfast/contexts.yaml")
    );
    assert_eq!(file_path(&with_variable(FILE_VARIABLE, "/x.yaml")).unwrap(), Path::new("/x.yaml"));
    assert_eq!(file_path(&Surroundings::default()).unwrap_err().code(), ErrorCode::ContextMissing);
}
