//! Flags → the definition of a source or a repository, and from there a fleet file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use holdfast_model::fleet::{Fleet, to_yaml};
use holdfast_model::ids::{InvalidName, RepositoryName, SourceName};
use holdfast_model::repository_spec::{Encryption, PruneSettings, RepositorySpec, StorageCredentials};
use holdfast_model::secret::SecretRef;
use holdfast_model::source::{EngineKind, Hooks, PostgresConnect, Source, SourceDocument};
use holdfast_model::{ErrorCode, Failure};

use crate::args::fleet::{EngineName, RepoAddArgs, SourceAddArgs};
use crate::error::{CliError, CliResult};

fn name_error(error: InvalidName) -> CliError {
    CliError::new(ErrorCode::NameInvalid, error.to_string())
}

/// A name, checked.
pub(super) fn name<T: std::str::FromStr<Err = InvalidName>>(text: &str) -> CliResult<T> {
    text.parse().map_err(name_error)
}

/// The fleet file that declares the source of these flags.
///
/// # Errors
/// `HF-1001` or `HF-1007` when the flags make no source.
pub(super) fn source_file(args: &SourceAddArgs) -> CliResult<String> {
    let source_name: SourceName = name(&args.name)?;
    let source = Source::try_from(document(args)?).map_err(|error| CliError::usage(error.to_string()))?;
    let fleet = Fleet { sources: BTreeMap::from([(source_name, source)]), ..Fleet::default() };
    Ok(to_yaml(&fleet))
}

fn document(args: &SourceAddArgs) -> CliResult<SourceDocument> {
    let engine = match args.engine {
        EngineName::Postgres => EngineKind::Postgres,
        EngineName::Sqlite => EngineKind::Sqlite,
        EngineName::Files => EngineKind::Files,
    };
    let hook = |text: &Option<String>| text.as_deref().map(name).transpose();
    let mut document = SourceDocument {
        engine,
        agent: name(&args.agent)?,
        policy: args.policy.as_deref().map(name).transpose()?,
        to: args.to.iter().map(|repo| name(repo)).collect::<CliResult<_>>()?,
        labels: args.label.iter().cloned().collect(),
        hooks: Hooks { before: hook(&args.before)?, after: hook(&args.after)? },
        connect: connect(args, engine)?,
        databases: some(args.database.clone()),
        method: None,
        tools: args.tools.clone(),
        path: None,
        paths: None,
        exclude: some(args.exclude.clone()),
        include: some(args.include.clone()),
        one_file_system: args.one_file_system.then_some(true),
    };
    match (engine, args.path.as_slice()) {
        (EngineKind::Files, paths) => document.paths = some(paths.to_vec()),
        (_, []) => {}
        (_, [path]) => document.path = Some(path.clone()),
        (_, _) => return Err(CliError::usage(format!("a source with engine {engine} has one --path"))),
    }
    Ok(document)
}

fn some<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

/// How to connect, when any flag about it is given or the engine needs it.
fn connect(args: &SourceAddArgs, engine: EngineKind) -> CliResult<Option<PostgresConnect>> {
    let given = args.host.is_some()
        || args.port.is_some()
        || args.user.is_some()
        || args.connect_database.is_some()
        || args.password_file.is_some()
        || args.password_env.is_some();
    if !given && engine != EngineKind::Postgres {
        return Ok(None);
    }
    let user =
        args.user.clone().ok_or_else(|| CliError::usage("a source with engine postgres needs --user"))?;
    // The defaults are those of the model, so they are taken from where they are written down.
    let mut connect: PostgresConnect = serde_json::from_value(serde_json::json!({ "user": user }))
        .map_err(|error| CliError::new(ErrorCode::Internal, error.to_string()))?;
    if let Some(host) = &args.host {
        connect.host.clone_from(host);
    }
    if let Some(port) = args.port {
        connect.port = port;
    }
    if let Some(database) = &args.connect_database {
        connect.database.clone_from(database);
    }
    connect.password = secret(args.password_file.as_ref(), args.password_env.as_ref());
    Ok(Some(connect))
}

fn secret(file: Option<&PathBuf>, variable: Option<&String>) -> Option<SecretRef> {
    file.map(|path| SecretRef::File(path.clone()))
        .or_else(|| variable.map(|name| SecretRef::Env(name.clone())))
}

/// The fleet file that declares the repository of these flags.
///
/// # Errors
/// `HF-1001` or `HF-1007` when the flags make no repository.
pub(super) fn repository_file(args: &RepoAddArgs) -> CliResult<String> {
    let repository_name: RepositoryName = name(&args.name)?;
    let key = secret(args.key_file.as_ref(), args.key_env.as_ref())
        .or_else(|| args.key_credential.clone().map(SecretRef::Credential))
        .ok_or_else(|| CliError::usage("a repository needs --key-file, --key-env or --key-credential"))?;
    if let SecretRef::File(path) = &key
        && !path.is_absolute()
    {
        return Err(CliError::new(
            ErrorCode::PathInvalid,
            format!("--key-file {} is relative: it is a path on the controller's host", path.display()),
        ));
    }
    let access_key = secret(args.access_key_file.as_ref(), args.access_key_env.as_ref());
    let secret_key = secret(args.secret_key_file.as_ref(), args.secret_key_env.as_ref());
    let spec = RepositorySpec {
        url: args.url.clone(),
        region: args.region.clone(),
        endpoint: args.endpoint.clone(),
        credentials: access_key
            .zip(secret_key)
            .map(|(access_key, secret_key)| StorageCredentials { access_key, secret_key }),
        encryption: Encryption { key },
        compression_level: args.compression_level,
        prune: PruneSettings::default(),
    };
    let fleet = Fleet { repositories: BTreeMap::from([(repository_name, spec)]), ..Fleet::default() };
    Ok(to_yaml(&fleet))
}

/// What a definition is, read back as the controller would; the first problem of it.
///
/// # Errors
/// With the code of the broken rule.
pub(super) fn check(file: &str, text: &str) -> CliResult<()> {
    let files = [holdfast_model::fleet::FleetFile { name: file.to_owned(), text: text.to_owned() }];
    match holdfast_model::fleet::read_fleet(&files) {
        Ok(_) => Ok(()),
        Err(errors) => match errors.first() {
            Some(error) => Err(Failure::from(error).into()),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::fleet::{RepoCommand, SourceCommand};
    use crate::args::{Cli, Command};

    fn source(flags: &str) -> CliResult<String> {
        let cli =
            Cli::try_parse_from(["holdfast", "source", "add"].into_iter().chain(flags.split(' '))).unwrap();
        match cli.command {
            Command::Source(SourceCommand::Add(args)) => {
                let text = source_file(&args)?;
                check("test", &text)?;
                Ok(text)
            }
            other => panic!("{other:?}"),
        }
    }

    fn repository(flags: &str) -> CliResult<String> {
        let cli =
            Cli::try_parse_from(["holdfast", "repo", "add"].into_iter().chain(flags.split(' '))).unwrap();
        match cli.command {
            Command::Repo(RepoCommand::Add(args)) => {
                let text = repository_file(&args)?;
                check("test", &text)?;
                Ok(text)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sqlite_source_is_declared() {
        insta::assert_snapshot!(
            source("shop --engine sqlite --agent app1 --path /srv/shop.db --to main -l env=prod").unwrap(), @r#"
            api: holdfast/v1
            sources:
              shop:
                engine: sqlite
                agent: app1
                to:
                - main
                labels:
                  env: prod
                path: /srv/shop.db
            "#);
    }

    #[test]
    fn a_postgres_source_names_where_its_password_is() {
        insta::assert_snapshot!(
            source("pg --engine postgres --agent db1 --host 127.0.0.1 --user holdfast --password-file /etc/pg.pass --database orders").unwrap(),
            @r#"
            api: holdfast/v1
            sources:
              pg:
                engine: postgres
                agent: db1
                connect:
                  host: "127.0.0.1"
                  port: 5432
                  user: holdfast
                  database: postgres
                  password:
                    file: /etc/pg.pass
                databases:
                - orders
                method: logical
            "#);
    }

    #[test]
    fn flags_of_another_engine_are_refused() {
        let error =
            source("shop --engine sqlite --agent app1 --path /srv/shop.db --exclude *.tmp").unwrap_err();
        assert_eq!(error.code(), ErrorCode::UsageInvalid);
        assert!(error.failure().message.contains("exclude"), "{error}");
        for wrong in [
            "shop --engine sqlite --agent app1",
            "shop --engine sqlite --agent app1 --path relative.db",
            "shop --engine sqlite --agent app1 --path /a --path /b",
            "shop --engine files --agent app1",
            "pg --engine postgres --agent db1",
            "Shop --engine sqlite --agent app1 --path /srv/shop.db",
            "shop --engine sqlite --agent -x --path /srv/shop.db",
        ] {
            assert!(
                Cli::try_parse_from(["holdfast", "source", "add"].into_iter().chain(wrong.split(' ')))
                    .is_err()
                    || source(wrong).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_repository_is_declared() {
        insta::assert_snapshot!(
            repository("main --url file:///var/lib/holdfast/main --key-file /etc/holdfast/main.key").unwrap(), @r#"
            api: holdfast/v1
            repositories:
              main:
                url: file:///var/lib/holdfast/main
                encryption:
                  key:
                    file: /etc/holdfast/main.key
                compression_level: 3
                prune:
                  every: 1d
                  max_unused: 5%
                  grace: 1d
                  approve_above: 30%
            "#);
    }

    #[test]
    fn a_repository_with_a_bad_place_or_key_is_refused() {
        let relative = repository("main --url file:///srv/repo --key-file main.key").unwrap_err();
        assert_eq!(relative.code(), ErrorCode::PathInvalid);
        let url = repository("main --url /srv/repo --key-file /k").unwrap_err();
        assert_eq!(url.code(), ErrorCode::FileInvalid);
    }
}
