//! What this agent may be asked to do, by its own configuration. Pure: paths are compared as they are written, and the
//! engines open them without following links out of the folders they are given.

use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;
use holdfast_model::restore::Placement;
use holdfast_model::secret::SecretRef;
use holdfast_model::source::{EngineConfig, Source};
use holdfast_model::{ErrorCode, Failure};
use serde::Deserialize;

/// What an agent may be asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllowList {
    /// Folders into which files and SQLite databases may be restored, whatever is in them. Without any, none may be.
    pub restore_paths: Vec<PathBuf>,
    /// Whether a restore may take the place of live data (whose former content is kept beside it).
    pub restore_in_place: bool,
    /// What may be captured.
    pub sources: AllowedSources,
    /// Programs, by absolute path, that may be run to resolve a secret. Without any, none may be.
    pub commands: Vec<PathBuf>,
    /// Folders from which client tools may be run when a source names one. Without any, only those installed where the
    /// engine looks.
    pub tools: Vec<PathBuf>,
    /// Whether it may say which databases it sees on its host; files only in the folders of `sources.paths`.
    pub discovery: bool,
}

impl Default for AllowList {
    fn default() -> Self {
        Self {
            restore_paths: Vec::new(),
            restore_in_place: true,
            sources: AllowedSources::default(),
            commands: Vec::new(),
            tools: Vec::new(),
            discovery: true,
        }
    }
}

/// What may be captured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllowedSources {
    /// Folders that files and SQLite databases must lie in; any when it is not given.
    pub paths: Option<Vec<PathBuf>>,
    /// Patterns that the names of databases must match; any when it is not given. A source must then name its
    /// databases.
    pub databases: Option<Vec<String>>,
}

impl AllowList {
    /// Whether the list itself makes sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        let lists: [(&str, &[PathBuf]); 4] = [
            ("allow.restore_paths", &self.restore_paths),
            ("allow.sources.paths", self.sources.paths.as_deref().unwrap_or_default()),
            ("allow.commands", &self.commands),
            ("allow.tools", &self.tools),
        ];
        for (key, paths) in lists {
            if let Some(path) = paths.iter().find(|path| !is_plain(path)) {
                return Err(format!("`{key}` has the path {path:?}: absolute paths without `..` are needed"));
            }
        }
        for pattern in self.sources.databases.iter().flatten() {
            GlobBuilder::new(pattern)
                .build()
                .map_err(|error| format!("`allow.sources.databases` has the pattern {pattern:?}: {error}"))?;
        }
        Ok(())
    }

    /// Whether this source may be captured, probed, restored.
    ///
    /// # Errors
    /// `HF-5001` names what is not allowed and the key of the configuration that would allow it.
    pub fn check_source(&self, source: &Source) -> Result<(), Failure> {
        match &source.engine {
            EngineConfig::Files(files) => {
                files.paths.iter().try_for_each(|path| self.check_source_path(path))
            }
            EngineConfig::Sqlite(sqlite) => self.check_source_path(&sqlite.path),
            EngineConfig::Postgres(postgres) => {
                if let Some(tools) = &postgres.tools
                    && !is_within(tools, &self.tools)
                {
                    return Err(denied(
                        format!("client tools of {} may not be run", tools.display()),
                        "allow.tools",
                    ));
                }
                if let Some(SecretRef::Command(argv)) = &postgres.connect.password {
                    self.check_command(argv)?;
                }
                self.check_databases(&postgres.databases)
            }
        }
    }

    fn check_source_path(&self, path: &Path) -> Result<(), Failure> {
        match &self.sources.paths {
            Some(allowed) if !is_within(path, allowed) => {
                Err(denied(format!("{} may not be read", path.display()), "allow.sources.paths"))
            }
            _ => Ok(()),
        }
    }

    fn check_databases(&self, databases: &[String]) -> Result<(), Failure> {
        let Some(allowed) = &self.sources.databases else { return Ok(()) };
        if databases.is_empty() {
            let message = "the source must name its databases: not every database may be read";
            return Err(denied(message.to_owned(), "allow.sources.databases"));
        }
        match databases.iter().find(|name| !matches_any(name, allowed)) {
            Some(name) => {
                Err(denied(format!("the database {name:?} may not be read"), "allow.sources.databases"))
            }
            None => Ok(()),
        }
    }

    /// Whether it may say which databases it sees.
    ///
    /// # Errors
    /// `HF-5001` when it may not.
    pub fn check_discovery(&self) -> Result<(), Failure> {
        if self.discovery {
            Ok(())
        } else {
            Err(denied("the databases of this host may not be listed".to_owned(), "allow.discovery"))
        }
    }

    /// Whether it may be told that there is a database of this name.
    pub fn may_name(&self, database: &str) -> bool {
        self.sources.databases.as_ref().is_none_or(|allowed| matches_any(database, allowed))
    }

    /// Whether this command may be run to resolve a secret.
    ///
    /// # Errors
    /// `HF-5001` when its program is not listed.
    pub fn check_command(&self, argv: &[String]) -> Result<(), Failure> {
        let program = argv.first().map(Path::new).unwrap_or(Path::new(""));
        if self.commands.iter().any(|allowed| allowed == program) {
            Ok(())
        } else {
            Err(denied(format!("the command {} may not be run", program.display()), "allow.commands"))
        }
    }

    /// Whether a restore may go there. Paths that only the engine can tell (those beside an original) are checked by
    /// it against [`AllowList::restore_paths`].
    ///
    /// # Errors
    /// `HF-5001` when it may not.
    pub fn check_restore(&self, source: &Source, placement: &Placement) -> Result<(), Failure> {
        match (placement, &source.engine) {
            (placement, _) if placement.is_in_place() && !self.restore_in_place => {
                Err(denied("live data may not be replaced".to_owned(), "allow.restore_in_place"))
            }
            (Placement::Into(target), EngineConfig::Files(_) | EngineConfig::Sqlite(_)) => {
                self.check_restore_path(Path::new(target))
            }
            (
                Placement::Beside | Placement::InPlace | Placement::InPlaceDelta,
                EngineConfig::Sqlite(sqlite),
            ) => self.check_restore_path(&sqlite.path),
            (
                Placement::Beside | Placement::InPlace | Placement::InPlaceDelta,
                EngineConfig::Files(files),
            ) => files.paths.iter().try_for_each(|path| self.check_restore_path(path)),
            (_, EngineConfig::Postgres(_)) => Ok(()),
        }
    }

    fn check_restore_path(&self, path: &Path) -> Result<(), Failure> {
        if is_within(path, &self.restore_paths) {
            Ok(())
        } else {
            Err(denied(format!("nothing may be restored to {}", path.display()), "allow.restore_paths"))
        }
    }
}

fn denied(message: String, key: &str) -> Failure {
    Failure::new(ErrorCode::NotAllowedHere, message)
        .because(format!("`{key}` in the agent's own configuration does not allow it"))
        .at_stake("nothing was touched")
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| matches!(part, Component::ParentDir))
}

/// Whether a path is one of these folders or lies in one; compared part by part, so `/srv2` is not in `/srv`.
fn is_within(path: &Path, folders: &[PathBuf]) -> bool {
    is_plain(path) && folders.iter().any(|folder| path.starts_with(folder))
}

fn matches_any(name: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| {
        GlobBuilder::new(pattern).build().is_ok_and(|glob| glob.compile_matcher().is_match(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(yaml: &str) -> Source {
        holdfast_model::fleet::read_yaml("test", yaml).unwrap()
    }

    fn files(path: &str) -> Source {
        source(&format!("{{ engine: files, agent: a, paths: [{path:?}] }}"))
    }

    fn list(yaml: &str) -> AllowList {
        holdfast_model::fleet::read_yaml("test", yaml).unwrap()
    }

    #[test]
    fn without_limits_every_source_is_allowed_and_no_restore_to_a_path() {
        let list = AllowList::default();
        list.check_source(&files("/srv/data")).unwrap();
        for placement in [Placement::Beside, Placement::InPlace, Placement::Into("/srv/x".to_owned())] {
            let error = list.check_restore(&files("/srv/data"), &placement).unwrap_err();
            assert_eq!(error.code, ErrorCode::NotAllowedHere, "{placement:?}");
        }
    }

    #[test]
    fn a_folder_allows_what_is_in_it_and_not_what_only_looks_so() {
        let list = list("{ sources: { paths: [/srv, /etc/app] }, restore_paths: [/srv/restore] }");
        for (path, allowed) in [
            ("/srv", true),
            ("/srv/a b/ü", true),
            ("/srv2", false),
            ("/etc", false),
            ("/etc/app/conf", true),
            ("/", false),
        ] {
            assert_eq!(list.check_source(&files(path)).is_ok(), allowed, "{path}");
        }
        for (path, allowed) in [
            ("/srv/restore/x", true),
            ("/srv/restore", true),
            ("/srv/restored", false),
            ("/srv/restore/../etc", false),
            ("restore", false),
            ("", false),
        ] {
            let placement = Placement::Into(path.to_owned());
            assert_eq!(list.check_restore(&files("/srv/data"), &placement).is_ok(), allowed, "{path}");
        }
    }

    #[test]
    fn databases_are_matched_by_pattern_and_must_be_named() {
        let list = list(r#"{ sources: { databases: [orders, "shop_*"] } }"#);
        let postgres = |databases: &str| {
            source(&format!(
                "{{ engine: postgres, agent: a, connect: {{ user: u }}, databases: {databases} }}"
            ))
        };
        for (databases, allowed) in [
            ("[orders]", true),
            ("[orders, shop_eu]", true),
            ("[orders, payroll]", false),
            ("[Orders]", false),
            ("[\"orders'; DROP\"]", false),
            ("[]", false),
        ] {
            assert_eq!(list.check_source(&postgres(databases)).is_ok(), allowed, "{databases}");
        }
    }

    #[test]
    fn neither_commands_nor_tools_come_from_the_controller() {
        let with =
            |rest: &str| source(&format!("{{ engine: postgres, agent: a, connect: {{ user: u{rest} }}"));
        let command = with(", password: { command: [/bin/sh, -c, id] } }");
        let tools = with(" }, tools: /tmp/evil");
        for source in [&command, &tools] {
            assert_eq!(
                AllowList::default().check_source(source).unwrap_err().code,
                ErrorCode::NotAllowedHere
            );
        }
        list("{ commands: [/bin/sh] }").check_source(&command).unwrap();
        list("{ tools: [/tmp] }").check_source(&tools).unwrap();
        list("{ commands: [/usr/bin/vault] }").check_source(&command).unwrap_err();
    }

    #[test]
    fn a_refusal_names_the_key_that_would_allow_it() {
        let placement = Placement::Into("/etc/cron.d".to_owned());
        let error = AllowList::default().check_restore(&files("/srv"), &placement).unwrap_err();
        assert_eq!(
            error.to_string(),
            "[HF-5001] nothing may be restored to /etc/cron.d: `allow.restore_paths` in the agent's own \
             configuration does not allow it"
        );
    }

    #[test]
    fn live_data_is_left_alone_where_that_is_configured() {
        let list = list("{ restore_in_place: false, restore_paths: [/] }");
        list.check_restore(&files("/srv"), &Placement::Beside).unwrap();
        list.check_restore(&files("/srv"), &Placement::InPlace).unwrap_err();
    }
}
