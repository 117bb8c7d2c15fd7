//! `holdfast source|repo|agent …` and the commands about fleet files

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::global::parse_duration;
use holdfast_model::units::Span;

/// Sources.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Declare a source
    Add(Box<SourceAddArgs>),
    /// List sources
    List,
    /// Show the definition of a source
    Show(SourceNameArgs),
    /// List the databases that agents see on their hosts, and which source covers each; changes nothing
    Discover(SourceDiscoverArgs),
    /// Reach a source as a backup would, step by step; changes nothing
    Test(SourceNameArgs),
    /// Keep the backups of a source from beginning by themselves for a while
    Pause(SourcePauseArgs),
    /// End the pause of a source
    Resume(SourceNameArgs),
    /// Have the runs of a source write down how they do what they do, for a while
    Debug(SourceDebugArgs),
    /// Forget the definition of a source; its snapshots stay
    Remove(SourceRemoveArgs),
}

/// `source discover`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast source discover
  holdfast source discover --agent db1 --policy gold
  holdfast source discover -o json | jq '.items[] | select(.policy == null)'

An agent sees servers that listen on its host, SQLite files and data folders below `allow.sources.paths` of its own \
configuration, and the other databases of the servers that its sources are on. It uses no secret but those of these \
sources. For what no source covers, the definition to paste into a fleet file is printed.")]
pub struct SourceDiscoverArgs {
    /// Only on the host of this agent
    #[arg(long, value_name = "AGENT")]
    pub agent: Option<String>,

    /// The policy that printed definitions name [default: the only one there is]
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<String>,
}

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// A PostgreSQL server
    Postgres,
    /// A SQLite database file
    Sqlite,
    /// File trees
    Files,
}

/// `source add`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast source add shop --engine sqlite --agent app1 --path /srv/shop/shop.db
  holdfast source add pg-main --engine postgres --agent db1 --host 127.0.0.1 --user holdfast \\
      --password-file /etc/holdfast/pg.pass --database orders --database billing
  holdfast source add etc --engine files --agent db1 --path /etc --exclude '*.tmp'
  holdfast source add shop --engine sqlite --agent app1 --path /srv/shop.db --dry-run

Paths and secrets are those of the agent's host. A password is never an argument: name where the agent finds it.")]
pub struct SourceAddArgs {
    /// Name of the source
    #[arg(value_name = "NAME")]
    pub name: String,

    /// What kind of source it is
    #[arg(long)]
    pub engine: EngineName,

    /// The agent beside it
    #[arg(long, value_name = "AGENT")]
    pub agent: String,

    /// The policy that it is under; without one it is backed up by hand
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<String>,

    /// Repository to back up to, may be given often; without it the only one there is
    #[arg(long, value_name = "REPO")]
    pub to: Vec<String>,

    /// Label, may be given often
    #[arg(long, short = 'l', value_name = "KEY=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,

    /// Hook of the agent's configuration that runs before a capture
    #[arg(long, value_name = "HOOK")]
    pub before: Option<String>,

    /// Hook of the agent's configuration that runs after it, whatever the outcome
    #[arg(long, value_name = "HOOK")]
    pub after: Option<String>,

    /// sqlite: the database file; files: a tree, may be given often
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,

    /// files: pattern of what to leave out, as in .gitignore, may be given often
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,

    /// files: take only what matches, may be given often
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,

    /// files: do not cross into other file systems
    #[arg(long)]
    pub one_file_system: bool,

    /// postgres: host name, address or folder of a socket
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// postgres: port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// postgres: user
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// postgres: database to capture, may be given often; without it all that allow connections
    #[arg(long, value_name = "NAME")]
    pub database: Vec<String>,

    /// postgres: database to connect to first
    #[arg(long, value_name = "NAME")]
    pub connect_database: Option<String>,

    /// postgres: file on the agent's host with the password
    #[arg(long, value_name = "FILE", group = "password")]
    pub password_file: Option<PathBuf>,

    /// postgres: variable of the agent's environment with the password
    #[arg(long, value_name = "VARIABLE", group = "password")]
    pub password_env: Option<String>,

    /// postgres: folder of the client tools on the agent's host
    #[arg(long, value_name = "DIR")]
    pub tools: Option<PathBuf>,

    /// Print the definition as YAML and stop
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is needed".to_owned()),
    }
}

/// A command about one source.
#[derive(Debug, Args)]
pub struct SourceNameArgs {
    /// Name of the source
    #[arg(value_name = "SOURCE")]
    pub name: String,
}

/// `source pause`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast source pause shop --reason \"migration\" --for 2h
  holdfast source pause shop --reason \"host is down for repair\"

Runs that are active go on, and `holdfast backup run` still works. What was missed is caught up with when the pause is \
over, as the policy says. A paused source is shown as such, and its objectives still count.")]
pub struct SourcePauseArgs {
    /// Name of the source
    #[arg(value_name = "SOURCE")]
    pub name: String,

    /// For how long, such as 2h or 1d; without it until `holdfast source resume`
    #[arg(long = "for", value_name = "DURATION")]
    pub length: Option<Span>,
}

/// `source debug`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast source debug shop
  holdfast source debug shop --for 2h
  holdfast source debug shop --off

Nothing is restarted: runs that are active begin to write debug lines into their logs too, such as the client tools \
that they run, why a file is read again, and how long each pack took. `holdfast run logs` prints them. It ends by \
itself.")]
pub struct SourceDebugArgs {
    /// Name of the source
    #[arg(value_name = "SOURCE")]
    pub name: String,

    /// For how long, such as 30m or 2h, at most 7d [default: 1h]
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "off")]
    pub length: Option<Span>,

    /// End it now
    #[arg(long)]
    pub off: bool,
}

/// `source remove`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast source remove old-shop
  holdfast source remove old-shop --confirm old-shop --reason \"host was retired\"

Its snapshots stay in their repositories and can still be restored.")]
pub struct SourceRemoveArgs {
    /// Name of the source
    #[arg(value_name = "SOURCE")]
    pub name: String,

    /// Print what would be removed and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// Repositories.
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Declare a repository, and create it or open the one that is there
    Add(Box<RepoAddArgs>),
    /// List repositories with their state
    List,
    /// Check the structure of a repository
    Check(RepoCheckArgs),
    /// Show what is stored, by source
    Usage(RepoNameArgs),
    /// Remove what no snapshot needs any more
    Prune(RepoPruneArgs),
    /// Copy snapshots into another repository, or heal it from one
    Copy(RepoCopyArgs),
}

/// `repo add`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast repo add main --url file:///var/lib/holdfast/main --key-file /etc/holdfast/main.key
  holdfast repo add s3 --url s3://bucket/prefix --region eu-central-1 --key-env REPO_KEY \\
      --access-key-env S3_ACCESS_KEY --secret-key-env S3_SECRET_KEY

Paths and variables are those of the controller. Keep a copy of the key elsewhere: without it nothing can be read. \
An existing repository of restic (format 2) is opened and its snapshots are listed.")]
pub struct RepoAddArgs {
    /// Name of the repository
    #[arg(value_name = "NAME")]
    pub name: String,

    /// file:///ABSOLUTE/PATH or s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL")]
    pub url: String,

    /// File on the controller's host with the password of the repository
    #[arg(long, value_name = "FILE", group = "key", required_unless_present_any = ["key_env", "key_credential"])]
    pub key_file: Option<PathBuf>,

    /// Variable of the controller's environment with the password
    #[arg(long, value_name = "VARIABLE", group = "key")]
    pub key_env: Option<String>,

    /// systemd credential of the controller with the password
    #[arg(long, value_name = "NAME", group = "key")]
    pub key_credential: Option<String>,

    /// s3: region of the bucket
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// s3: address of a compatible server
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,

    /// s3: variable of the controller's environment with the access key
    #[arg(long, value_name = "VARIABLE", requires = "secret_key_env", conflicts_with = "access_key_file")]
    pub access_key_env: Option<String>,

    /// s3: variable of the controller's environment with the secret key
    #[arg(long, value_name = "VARIABLE", requires = "access_key_env", conflicts_with = "secret_key_file")]
    pub secret_key_env: Option<String>,

    /// s3: file on the controller's host with the access key
    #[arg(long, value_name = "FILE", requires = "secret_key_file")]
    pub access_key_file: Option<PathBuf>,

    /// s3: file on the controller's host with the secret key
    #[arg(long, value_name = "FILE", requires = "access_key_file")]
    pub secret_key_file: Option<PathBuf>,

    /// zstd level of new blobs
    #[arg(long, value_name = "1-19", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=19))]
    pub compression_level: u8,

    /// Print the definition as YAML and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// A command about one repository.
#[derive(Debug, Args)]
pub struct RepoNameArgs {
    /// Name of the repository
    #[arg(value_name = "REPO")]
    pub name: String,
}

/// `repo check`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast repo check main                  every index, snapshot and tree
  holdfast repo check main --read-data      and every byte of every pack

Exit status: 0 nothing found, 1 the check could not be done, 10 something is missing or damaged.")]
pub struct RepoCheckArgs {
    /// Name of the repository
    #[arg(value_name = "REPO")]
    pub name: String,

    /// Read and open every pack as well
    #[arg(long)]
    pub read_data: bool,
}

/// `repo prune`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast repo prune main --dry-run        what would go
  holdfast repo prune main
  holdfast repo prune main --confirm main --reason \"old servers were forgotten\"

Packs in which nothing is needed go into the trash of the repository and are deleted after its time of grace; packs of \
which enough is not needed are repacked. Backups may run meanwhile. The repository's definition says how often this \
happens by itself, and which share may be freed without a person. Exit status: 0 done, 9 must be confirmed.")]
pub struct RepoPruneArgs {
    /// Name of the repository
    #[arg(value_name = "REPO")]
    pub name: String,

    /// Print what would go and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// `repo copy`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast repo copy main offsite                     every snapshot that offsite does not have
  holdfast repo copy main offsite --source pg-main    those of one source
  holdfast repo copy main offsite --snapshot 1f2e3d4c
  holdfast repo copy main offsite --dry-run           what would be sent
  holdfast repo copy offsite main --heal              store again in main what is damaged there

FROM is only read. Only what TO lacks is sent, so that a copy which was interrupted goes on where it was. Each copy is \
a snapshot of its own: kept by the rules of its policy in TO, held when its origin is, restored and verified by its own \
id. Policies copy by themselves with copy_to. Exit status: 0 done, 10 something is damaged and was not copied.")]
pub struct RepoCopyArgs {
    /// Repository that has the snapshots
    #[arg(value_name = "FROM")]
    pub from: String,

    /// Repository that gets them
    #[arg(value_name = "TO")]
    pub to: String,

    /// Only the snapshots of this source
    #[arg(long, value_name = "SOURCE", conflicts_with = "snapshot")]
    pub source: Option<String>,

    /// Only this snapshot; may be given again
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Vec<String>,

    /// Copy no snapshot: store again in TO what its snapshots lack and FROM has
    #[arg(long)]
    pub heal: bool,

    /// Print what would be sent and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// Agents.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Make a one-use token for a new agent and print what to run on its host
    Enroll(AgentEnrollArgs),
    /// List agents
    List,
    /// End an agent's session and refuse its certificates from now on
    Revoke(AgentRevokeArgs),
}

/// `agent enroll`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast agent enroll db1
  holdfast agent enroll db1 --ttl 5m -o json | jq -r .items[0].token")]
pub struct AgentEnrollArgs {
    /// Name that the agent will have
    #[arg(value_name = "NAME")]
    pub name: String,

    /// How long the token can be used, at most 1h
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = parse_ttl)]
    pub ttl: Duration,
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text)?;
    if (1..=3600).contains(&ttl.as_secs()) { Ok(ttl) } else { Err("1s to 1h is possible".to_owned()) }
}

/// `agent revoke`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast agent revoke db1 --reason \"host was retired\"
  holdfast agent revoke db1 --yes --reason \"host was retired\"")]
pub struct AgentRevokeArgs {
    /// Name of the agent
    #[arg(value_name = "AGENT")]
    pub name: String,
}

/// Where fleet files are read from.
#[derive(Debug, Args)]
pub struct FleetFiles {
    /// A file, a folder with *.yaml files, or - for standard input; may be given often
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub files: Vec<PathBuf>,
}

/// On whose behalf files are applied.
#[derive(Debug, Clone, Default, Args)]
pub struct AuthorshipArgs {
    /// Remove definitions of the same owner that the files lack
    #[arg(long)]
    pub prune: bool,

    /// Who manages the definitions, such as git:main; others then cannot change them by accident
    #[arg(long, value_name = "NAME")]
    pub owner: Option<String>,

    /// Take over definitions that others manage
    #[arg(long)]
    pub take_over: bool,
}

/// `apply`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast apply -f fleet/ --dry-run
  holdfast apply -f fleet/
  holdfast apply -f fleet/ --prune --confirm sources.old-shop --reason \"host was retired\"
  holdfast apply -f fleet/ --owner git:main --prune --yes      from a pipeline

What is applied under an owner is changed and pruned by the same owner alone. All changes are made, or none. Exit status: 0 applied, 2 a file is not valid, 9 must be confirmed, \
20 with --dry-run: changes are pending.")]
pub struct ApplyArgs {
    /// The files.
    #[command(flatten)]
    pub files: FleetFiles,

    /// On whose behalf.
    #[command(flatten)]
    pub authorship: AuthorshipArgs,

    /// Print the changes and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// `validate`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast validate -f fleet/
  holdfast validate -f fleet/ --offline   asks no controller about names outside the files

Exit status: 0 valid, 2 not valid.")]
pub struct ValidateArgs {
    /// The files.
    #[command(flatten)]
    pub files: FleetFiles,

    /// Ask no controller
    #[arg(long)]
    pub offline: bool,
}

/// `diff`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast diff -f fleet/
  holdfast diff -f fleet/ --against exported.yaml   compares files, asks no controller

Exit status: 0 no difference, 2 a file is not valid, 20 changes are pending.")]
pub struct DiffArgs {
    /// The files.
    #[command(flatten)]
    pub files: FleetFiles,

    /// On whose behalf.
    #[command(flatten)]
    pub authorship: AuthorshipArgs,

    /// Compare with these files instead of the controller
    #[arg(long, value_name = "PATH")]
    pub against: Vec<PathBuf>,
}

/// `export`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast export > fleet.yaml
  holdfast export --effective     with every default written out
  holdfast export -o json")]
pub struct ExportArgs {
    /// Write every default out
    #[arg(long)]
    pub effective: bool,
}

/// `init`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  holdfast init fleet/
  holdfast validate -f fleet/ --offline

Writes example files to change, with the JSON Schema that editors check them against. Nothing that is there is replaced.")]
pub struct InitArgs {
    /// The folder, which is made when it is not there
    #[arg(value_name = "DIR", default_value = "fleet")]
    pub folder: PathBuf,
}
