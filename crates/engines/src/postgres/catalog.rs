//! What the catalogs say of a server and of one database.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_model::ErrorCode;
use holdfast_model::manifest::TableManifest;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::connect::{Server, Session, or_cancelled};
use super::quote::{literal, printable, qualified, readable};
use crate::EngineError;

/// The oldest major version whose catalogs this engine knows.
pub(crate) const MAJOR_MIN: u32 = 12;

/// How many tables an error names.
const NAMED_MAX: usize = 5;

/// What a server says of itself.
#[derive(Debug, Clone)]
pub(crate) struct ServerFacts {
    /// Version, such as `15.18`.
    pub(crate) version: String,
    /// Its major number.
    pub(crate) major: u32,
    /// Whether it is a standby.
    pub(crate) in_recovery: bool,
    /// Its identity.
    pub(crate) system_id: Option<String>,
    /// Whether the login is a superuser.
    pub(crate) superuser: bool,
    /// Databases that allow connections, except templates, with their sizes in bytes as far as the login may know,
    /// by name.
    pub(crate) databases: BTreeMap<String, u64>,
}

impl ServerFacts {
    /// Asks the server.
    pub(crate) async fn read(session: &Session, cancel: &CancellationToken) -> Result<Self, EngineError> {
        let row = session
            .query_one(
                "SELECT current_setting('server_version'), current_setting('server_version_num')::int4, \
                 pg_is_in_recovery(), (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
                &[],
                cancel,
            )
            .await?;
        let full: String = row.get(0);
        let number: i32 = row.get(1);
        // Some packagers append their own version after a space.
        let version = full.split_whitespace().next().unwrap_or(&full).to_owned();
        let major = u32::try_from(number / 10_000).unwrap_or_default();
        if major < MAJOR_MIN {
            return Err(EngineError::new(
                ErrorCode::Unsupported,
                format!("PostgreSQL {version} is older than {MAJOR_MIN}, the oldest version supported"),
            ));
        }
        let system_id =
            session.texts("SELECT system_identifier::text FROM pg_control_system()", cancel).await;
        let databases = session
            .query(
                "SELECT datname::text, CASE WHEN has_database_privilege(oid, 'CONNECT') \
                 THEN pg_database_size(oid) ELSE 0 END \
                 FROM pg_database WHERE datallowconn AND NOT datistemplate",
                &[],
                cancel,
            )
            .await?;
        Ok(Self {
            version,
            major,
            in_recovery: row.get(2),
            // Not every service lets its users ask.
            system_id: system_id.ok().and_then(|ids| ids.into_iter().next()),
            superuser: row.get::<_, Option<bool>>(3).unwrap_or(false),
            databases: databases.iter().map(|row| (row.get(0), unsigned(row.get(1)))).collect(),
        })
    }

    /// The databases to capture: those asked for, or all.
    ///
    /// # Errors
    /// `HF-2010` names those that do not exist.
    pub(crate) fn select(&self, server: &Server, wanted: &[String]) -> Result<Vec<String>, EngineError> {
        if wanted.is_empty() {
            return Ok(self.databases.keys().cloned().collect());
        }
        let missing: Vec<_> = wanted.iter().filter(|name| !self.databases.contains_key(*name)).collect();
        if !missing.is_empty() {
            let names = missing.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", ");
            return Err(EngineError::new(
                ErrorCode::SourceMissing,
                format!("{server} has no database {names}"),
            ));
        }
        let mut chosen = wanted.to_vec();
        chosen.sort();
        chosen.dedup();
        Ok(chosen)
    }
}

/// The position in the log that a capture begins at.
pub(crate) async fn log_position(
    session: &Session,
    cancel: &CancellationToken,
) -> Result<String, EngineError> {
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
               ELSE pg_current_wal_lsn() END)::text";
    Ok(session.query_one(sql, &[], cancel).await?.get::<_, Option<String>>(0).unwrap_or_default())
}

/// One relation of a database.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    /// Schema.
    pub(crate) schema: String,
    /// Name.
    pub(crate) name: String,
    /// Schema as the server's encoding spells it, which is how archives do.
    pub(crate) raw_schema: Vec<u8>,
    /// Name likewise.
    pub(crate) raw_name: Vec<u8>,
    /// `pg_class.relkind`.
    pub(crate) kind: char,
    /// Whether its rows are counted.
    pub(crate) counted: bool,
    /// Whether an archive holds data of it.
    pub(crate) dumped: bool,
    /// Whether the login may read it, whole.
    pub(crate) readable: bool,
}

impl Relation {
    /// How manifests name it.
    pub(crate) fn key(&self) -> String {
        readable(&self.schema, &self.name)
    }

    /// Whether it is a materialised view, whose rows a restore computes anew.
    pub(crate) fn is_materialized_view(&self) -> bool {
        self.kind == 'm'
    }
}

/// Tables, materialised views and sequences. Foreign tables hold no data of their own, partitioned tables none beside
/// their partitions', and tables of extensions come with their extension.
const RELATIONS: &str = "SELECT n.nspname::text, c.relname::text, \
     convert_to(n.nspname::text, getdatabaseencoding()), convert_to(c.relname::text, getdatabaseencoding()), \
     c.relkind::text, c.relispopulated, c.relpersistence = 'u' AND pg_is_in_recovery(), \
     EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
             AND d.deptype = 'e'), \
     has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') \
     AND NOT row_security_active(c.oid) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// Reads the relations of the session's database, in the order `pg_dump` takes them: by schema and name.
pub(crate) async fn relations(
    session: &Session,
    cancel: &CancellationToken,
) -> Result<Vec<Relation>, EngineError> {
    let rows = session.query(RELATIONS, &[], cancel).await?;
    let mut relations = Vec::with_capacity(rows.len());
    for row in &rows {
        let text = |column: usize| session.text(row, column);
        let kind = text(4)?.chars().next().unwrap_or('r');
        let (populated, beyond_reach, of_extension): (bool, bool, bool) =
            (row.get(5), row.get(6), row.get(7));
        let holds_rows = !of_extension && !beyond_reach && populated;
        relations.push(Relation {
            schema: text(0)?,
            name: text(1)?,
            raw_schema: row.get(2),
            raw_name: row.get(3),
            kind,
            counted: holds_rows && kind != 'S',
            dumped: holds_rows && kind == 'r',
            readable: of_extension || row.get(8),
        });
    }
    relations.sort_by(|a, b| (&a.raw_schema, &a.raw_name).cmp(&(&b.raw_schema, &b.raw_name)));
    Ok(relations)
}

/// Refuses a database of which something cannot be read, naming it.
///
/// # Errors
/// `HF-2003`.
pub(crate) fn require_readable(
    relations: &[Relation],
    database: &str,
    user: &str,
) -> Result<(), EngineError> {
    let closed: Vec<_> = relations.iter().filter(|relation| !relation.readable).collect();
    if closed.is_empty() {
        return Ok(());
    }
    let mut names: Vec<_> =
        closed.iter().take(NAMED_MAX).map(|relation| printable(&relation.key())).collect();
    if closed.len() > NAMED_MAX {
        names.push(format!("{} more", closed.len() - NAMED_MAX));
    }
    Err(EngineError::new(
        ErrorCode::SourcePermissionMissing,
        format!("{user} cannot read {} of database {}", names.join(", "), printable(database)),
    )
    .caused_by("the login needs SELECT on every table and sequence, USAGE on their schemas, and BYPASSRLS where row level security applies to it")
    .then(format!("psql -d {} -c 'GRANT pg_read_all_data TO {user}'", shell_word(database))))
}

/// Tables with data that were renamed, dropped, truncated or rewritten since the snapshot of the session's transaction.
///
/// Rows come from the snapshot, but names and files are looked up as they are now, by the server's own rules: for such a
/// table `pg_dump` and `count(*)` would see another table, or none of its rows, without an error.
pub(crate) async fn changed_tables(
    session: &Session,
    cancel: &CancellationToken,
) -> Result<BTreeSet<String>, EngineError> {
    // A query reads the catalogs of the snapshot, the functions in it those of now.
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
               AND (pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode \
               OR c.oid::regclass::text IS DISTINCT FROM format('%I.%I', n.nspname, c.relname))";
    let rows = session.query(sql, &[], cancel).await?;
    rows.iter().map(|row| Ok(readable(&session.text(row, 0)?, &session.text(row, 1)?))).collect()
}

/// Counts the rows of one relation exactly, in the session's snapshot.
pub(crate) async fn count_rows(
    session: &Session,
    relation: &Relation,
    cancel: &CancellationToken,
) -> Result<TableManifest, EngineError> {
    let sql = format!("SELECT count(*) FROM ONLY {}", qualified(&relation.schema, &relation.name));
    let rows = session.query_one(&sql, &[], cancel).await?.get(0);
    Ok(TableManifest { rows: unsigned(rows) })
}

/// Counts the rows of one relation and gives its lock up again, so that nobody who changes tables waits for a capture
/// longer than for one count. Nothing when the relation is gone by now.
pub(crate) async fn count_rows_in_passing(
    session: &Session,
    relation: &Relation,
    cancel: &CancellationToken,
) -> Result<Option<TableManifest>, EngineError> {
    session.run("SAVEPOINT counting", cancel).await?;
    let sql = format!("SELECT count(*) FROM ONLY {}", qualified(&relation.schema, &relation.name));
    let counted = or_cancelled(cancel, session.client.query_one(&sql, &[])).await?;
    let rows = match counted {
        Ok(row) => Some(TableManifest { rows: unsigned(row.get(0)) }),
        Err(error) if is_gone(&error) => None,
        Err(error) => return Err(session.failed(error)),
    };
    session.run("ROLLBACK TO SAVEPOINT counting", cancel).await?;
    Ok(rows)
}

fn is_gone(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|state| [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].contains(state))
}

/// What one database holds besides rows, as seen in the session's transaction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    /// Tables, materialised views, sequences.
    pub(crate) relations: Vec<Relation>,
    /// Extensions with their versions.
    pub(crate) extensions: BTreeMap<String, String>,
    /// Last values of sequences by name; none for those never used.
    pub(crate) sequences: BTreeMap<String, Option<i64>>,
    /// Large objects.
    pub(crate) large_objects: u64,
    /// Roles that own or are granted something.
    pub(crate) roles: Vec<String>,
    /// Encoding.
    pub(crate) encoding: String,
    /// Size in bytes.
    pub(crate) logical_bytes: u64,
    /// Hash of all definitions.
    pub(crate) schema_hash: String,
}

/// Roles that own something (the superuser that `initdb` made is in no dependency, so owners are asked for
/// themselves), are granted something, or are named in a policy.
const ROLES: &str = "SELECT r.rolname::text FROM pg_roles r WHERE r.oid IN (\
     SELECT d.refobjid FROM pg_shdepend d, pg_database b WHERE b.datname = current_database() \
       AND d.refclassid = 'pg_authid'::regclass \
       AND (d.dbid = b.oid OR (d.classid = 'pg_database'::regclass AND d.objid = b.oid)) \
     UNION SELECT datdba FROM pg_database WHERE datname = current_database() \
     UNION SELECT relowner FROM pg_class WHERE oid >= 16384 \
     UNION SELECT proowner FROM pg_proc WHERE oid >= 16384 \
     UNION SELECT nspowner FROM pg_namespace WHERE oid >= 16384 \
     UNION SELECT typowner FROM pg_type WHERE oid >= 16384)";

impl Inventory {
    /// Reads everything but row counts.
    pub(crate) async fn read(session: &Session, cancel: &CancellationToken) -> Result<Self, EngineError> {
        let relations = relations(session, cancel).await?;
        let extensions =
            session.query("SELECT extname::text, extversion FROM pg_extension", &[], cancel).await?;
        let sequences = sequences(session, cancel).await?;
        let row = session
            .query_one(
                "SELECT (SELECT count(*) FROM pg_largeobject_metadata), getdatabaseencoding()::text, \
                 pg_database_size(current_database())",
                &[],
                cancel,
            )
            .await?;
        let mut roles = session.texts(ROLES, cancel).await?;
        roles.sort();
        Ok(Self {
            relations,
            extensions: extensions.iter().map(|row| (row.get(0), row.get(1))).collect(),
            sequences,
            large_objects: unsigned(row.get(0)),
            roles,
            encoding: row.get(1),
            logical_bytes: unsigned(row.get(2)),
            schema_hash: super::schema::hash(session, cancel).await?,
        })
    }
}

/// Last values of the sequences of the session's database, by name.
pub(crate) async fn sequences(
    session: &Session,
    cancel: &CancellationToken,
) -> Result<BTreeMap<String, Option<i64>>, EngineError> {
    let sql = "SELECT schemaname::text, sequencename::text, last_value FROM pg_sequences \
               WHERE schemaname !~ '^pg_' AND schemaname <> 'information_schema'";
    let rows = session.query(sql, &[], cancel).await?;
    rows.iter()
        .map(|row| Ok((readable(&session.text(row, 0)?, &session.text(row, 1)?), row.get(2))))
        .collect()
}

/// How many large objects the session's database has.
pub(crate) async fn large_objects(session: &Session, cancel: &CancellationToken) -> Result<u64, EngineError> {
    let sql = "SELECT count(*) FROM pg_largeobject_metadata";
    Ok(unsigned(session.query_one(sql, &[], cancel).await?.get(0)))
}

/// Those of the named roles that the server lacks.
pub(crate) async fn missing_roles(
    session: &Session,
    roles: &[String],
    cancel: &CancellationToken,
) -> Result<Vec<String>, EngineError> {
    let present = session.texts("SELECT rolname::text FROM pg_roles", cancel).await?;
    Ok(roles.iter().filter(|role| !present.contains(role)).cloned().collect())
}

/// Whether a database of this name exists.
pub(crate) async fn database_exists(
    session: &Session,
    name: &str,
    cancel: &CancellationToken,
) -> Result<bool, EngineError> {
    let sql = format!("SELECT count(*) FROM pg_database WHERE datname = {}", literal(name));
    Ok(session.query_one(&sql, &[], cancel).await?.get::<_, i64>(0) > 0)
}

/// Counts and sizes are never negative.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// A word that a shell takes as it is.
pub(crate) fn shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
