use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::TableManifest;
use rusqlite::{Connection, params};

use super::*;
use crate::test_support::{DirectoryContents, TestLog, context_with_scratch};
use crate::{Content, Entry, FileType, StoredSummary};

mod restores;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a database in it, and a scratch folder.
struct Shop {
    _guard: tempfile::TempDir,
    base: PathBuf,
    path: PathBuf,
}

impl Shop {
    fn new(name: &str, journal_mode: &str) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let base = guard.path().canonicalize().unwrap();
        fs::create_dir(base.join("scratch")).unwrap();
        let path = base.join(name);
        let shop = Self { _guard: guard, base, path };
        let sqlite = shop.connect();
        let mode: String =
            sqlite.query_row(&format!("PRAGMA journal_mode = {journal_mode}"), [], |row| row.get(0)).unwrap();
        assert_eq!(mode, journal_mode);
        sqlite
            .execute_batch(
                "CREATE TABLE orders(id INTEGER PRIMARY KEY AUTOINCREMENT, note TEXT NOT NULL);
                 CREATE TABLE ledger(order_id INTEGER NOT NULL REFERENCES orders(id), cents INTEGER);
                 CREATE INDEX by_order ON ledger(order_id);",
            )
            .unwrap();
        shop.fill(500);
        shop
    }

    fn connect(&self) -> Connection {
        let sqlite = Connection::open(&self.path).unwrap();
        sqlite.busy_timeout(PATIENCE).unwrap();
        sqlite
    }

    /// Adds orders, each with its line in the ledger.
    fn fill(&self, rows: u32) {
        let mut sqlite = self.connect();
        let transaction = sqlite.transaction().unwrap();
        for _ in 0..rows {
            add_order(&transaction);
        }
        transaction.commit().unwrap();
    }

    fn engine(&self) -> SqliteEngine {
        engine(&self.path)
    }

    fn context(&self) -> EngineContext {
        context_with_scratch(&self.base.join("scratch"))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.base)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "scratch")
            .collect();
        names.sort();
        names
    }
}

fn engine(path: &Path) -> SqliteEngine {
    SqliteEngine::new(SqliteConfig { path: path.to_owned() })
}

fn add_order(sqlite: &Connection) {
    sqlite.execute("INSERT INTO orders(note) VALUES (?1)", ["x".repeat(300)]).unwrap();
    let id = sqlite.last_insert_rowid();
    sqlite.execute("INSERT INTO ledger VALUES (?1, ?2)", params![id, id * 7]).unwrap();
}

/// Adds orders all the time, until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(shop: &Shop) -> Self {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut sqlite = shop.connect();
        sqlite.execute_batch("PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 50").unwrap();
        let (stopping, counted) = (stop.clone(), commits.clone());
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let transaction = sqlite.transaction().unwrap();
                add_order(&transaction);
                // Old rows go as well, so that pages are freed and used again.
                transaction
                    .execute_batch(
                        "DELETE FROM ledger WHERE order_id = (SELECT min(id) FROM orders);
                     DELETE FROM orders WHERE id = (SELECT min(id) FROM orders);
                     UPDATE orders SET note = note || 'y' WHERE id % 50 = 0",
                    )
                    .unwrap();
                transaction.commit().unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, commits, thread: Some(thread) }
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    fn wait_for_commits(&self, count: u64) {
        let (from, deadline) = (self.commits(), Instant::now() + PATIENCE);
        while self.commits() < from + count {
            assert!(Instant::now() < deadline, "the writer starves");
            std::thread::yield_now();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Takes a capture to its end, as a pipeline would, into a file.
async fn store(capture: Box<dyn Capture>, to: &Path) -> Result<Manifest, EngineError> {
    let (mut capture, to) = (capture, to.to_owned());
    let (capture, summary) = tokio::task::spawn_blocking(move || {
        let Entry { path, metadata, content } = capture.next_entry().unwrap().unwrap();
        assert_eq!(metadata.file_type, FileType::File);
        let (mut reader, is_stream): (Box<dyn std::io::Read>, bool) = match content {
            Content::PageStream { reader, .. } => (reader, true),
            Content::Pages { path, .. } => (Box::new(fs::File::open(path).unwrap()), false),
            _ => panic!("a database is pages"),
        };
        let mut file = fs::File::create(&to).unwrap();
        let bytes = std::io::copy(&mut reader, &mut file).unwrap();
        assert_eq!(bytes, metadata.size);
        assert!(capture.next_entry().unwrap().is_none());
        let mut summary = StoredSummary { files: 1, bytes, ..StoredSummary::default() };
        if is_stream {
            summary.streams.insert(path, bytes);
        }
        (capture, summary)
    })
    .await
    .unwrap();
    capture.finish(summary).await
}

/// A snapshot of the shop as it is now.
async fn snapshot(shop: &Shop) -> Result<(tempfile::TempDir, Arc<DirectoryContents>), EngineError> {
    let stored = tempfile::tempdir().unwrap();
    let capture = shop.engine().open_capture(&shop.context()).await?;
    let name = shop.path.file_name().unwrap();
    let manifest = store(capture, &stored.path().join(name)).await?;
    let contents = Arc::new(DirectoryContents::of_file(stored.path(), manifest));
    Ok((stored, contents))
}

fn rows(path: &Path, table: &str) -> u64 {
    let sqlite = Connection::open(path).unwrap();
    facts::count(&sqlite, table).unwrap()
}

/// Captures under load and proves that what came out is one moment of the database.
async fn capture_under_load(journal_mode: &str, is_stream: bool) {
    let shop = Shop::new("shop.db", journal_mode);
    shop.fill(20_000);
    let writer = Writer::start(&shop);
    for _ in 0..3 {
        writer.wait_for_commits(20);
        let capture = shop.engine().open_capture(&shop.context()).await.unwrap();
        assert_eq!(shop.base.join("scratch/copy.sqlite3").exists(), !is_stream);
        if is_stream {
            // The view is open, nothing is read yet: writers go on.
            writer.wait_for_commits(20);
        }
        let to = shop.base.join("scratch/stored.db");
        let manifest = store(capture, &to).await.unwrap();
        let database = &manifest.databases[0];
        assert_eq!((database.name.as_str(), database.path.as_str()), ("shop.db", "shop.db"));
        assert_eq!(database.settings["journal_mode"], if is_stream { "wal" } else { "delete" });

        let stored = Connection::open(&to).unwrap();
        let health = facts::check(&stored).unwrap();
        assert_eq!(health, facts::Health::default());
        let found = facts::collect(&stored, &mut Vec::new()).unwrap();
        assert_eq!((&found.tables, &found.sequences), (&database.tables, &database.sequences));
        assert_eq!(found.tables["orders"], found.tables["ledger"], "each order has its line");
        let last: i64 = stored.query_row("SELECT max(id) FROM orders", [], |row| row.get(0)).unwrap();
        assert_eq!(database.sequences["orders"], Some(last));
        drop(stored);
        for entry in fs::read_dir(shop.base.join("scratch")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

#[tokio::test]
async fn a_database_with_a_write_ahead_log_is_captured_in_place_under_load() {
    capture_under_load("wal", true).await;
}

#[tokio::test]
async fn a_database_with_a_rollback_journal_is_captured_under_load() {
    capture_under_load("delete", false).await;
}

#[tokio::test]
async fn a_capture_writes_nothing_to_the_database() {
    let shop = Shop::new("shop.db", "wal");
    let application = shop.connect();
    add_order(&application);
    let (before, log) = (fs::read(&shop.path).unwrap(), fs::read(shop.base.join("shop.db-wal")).unwrap());
    let (stored, contents) = snapshot(&shop).await.unwrap();
    assert!(!log.is_empty());
    assert!(fs::read(&shop.path).unwrap() == before);
    assert!(fs::read(shop.base.join("shop.db-wal")).unwrap() == log);
    // What is in the log only is in the snapshot.
    assert_eq!(contents.manifest().databases[0].tables["orders"], TableManifest { rows: 501 });
    assert_eq!(rows(&stored.path().join("shop.db"), "orders"), 501);
    drop(application);
    // Nobody has it open: SQLite makes its log for the capture, and removes it again.
    assert_eq!(shop.names(), ["shop.db"]);
    snapshot(&shop).await.unwrap();
    // The capture lets go of the database on a thread of its own.
    let gone = async {
        while shop.names() != ["shop.db"] {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, gone).await.is_ok(), "{:?}", shop.names());
}

#[tokio::test]
async fn a_stream_that_was_not_read_to_its_end_is_no_capture() {
    let shop = Shop::new("shop.db", "wal");
    let mut capture = shop.engine().open_capture(&shop.context()).await.unwrap();
    let Some(Entry { content: Content::PageStream { mut reader, .. }, path, metadata }) =
        capture.next_entry().unwrap()
    else {
        panic!("a stream of pages")
    };
    reader.read_exact(&mut [0; 4096]).unwrap();
    let mut stored = StoredSummary { files: 1, bytes: 4096, ..StoredSummary::default() };
    stored.streams.insert(path, 4096);
    let error = capture.finish(stored).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureIncomplete);
    assert_eq!(
        error.to_string(),
        format!("4096 of {} bytes of the database {} were stored", metadata.size, shop.path.display())
    );
}

// --- what cannot be captured

async fn refused(shop: &Shop) -> EngineError {
    snapshot(shop).await.err().expect("it is refused")
}

#[tokio::test]
async fn a_missing_database_is_named() {
    let shop = Shop::new("shop.db", "wal");
    fs::remove_file(&shop.path).unwrap();
    let error = refused(&shop).await;
    assert_eq!(error.code(), ErrorCode::SourceMissing);
    assert_eq!(error.to_string(), format!("there is no database {}", shop.path.display()));
    let probe = shop.engine().probe(&shop.context()).await.unwrap_err();
    assert_eq!(probe.code(), ErrorCode::SourceMissing);
    let error = engine(Path::new("shop.db")).probe(&shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PathInvalid);
    assert_eq!(error.to_string(), "the path \"shop.db\" is not absolute");
}

#[tokio::test]
async fn what_is_not_a_database_is_refused() {
    let shop = Shop::new("shop.db", "delete");
    let path = shop.path.display();
    fs::write(&shop.path, "not a database at all, but long enough to have a header of its own".repeat(20))
        .unwrap();
    let error = refused(&shop).await;
    assert_eq!(
        (error.code(), error.to_string()),
        (ErrorCode::SourceChangedType, format!("{path} is not a SQLite database"))
    );
    fs::write(&shop.path, "").unwrap();
    let error = refused(&shop).await;
    assert_eq!(
        (error.code(), error.to_string()),
        (ErrorCode::SourceChangedType, format!("{path} is empty, not a SQLite database"))
    );
    fs::remove_file(&shop.path).unwrap();
    fs::create_dir(&shop.path).unwrap();
    let error = refused(&shop).await;
    assert_eq!(
        (error.code(), error.to_string()),
        (ErrorCode::SourceChangedType, format!("{path} is not a regular file"))
    );
}

/// Overwrites a page that holds rows.
fn damage(path: &Path) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 4096 / 2;
    file.seek(SeekFrom::Start(middle * 4096)).unwrap();
    file.write_all(&[0xa5; 4096]).unwrap();
}

#[tokio::test]
async fn a_damaged_database_is_told_with_the_first_findings() {
    for journal_mode in ["wal", "delete"] {
        let shop = Shop::new("shop.db", journal_mode);
        shop.fill(2000);
        damage(&shop.path);
        let error = refused(&shop).await;
        assert_eq!(error.code(), ErrorCode::SourceDamaged);
        let message = error.to_string();
        let beginning = format!("the database {} is damaged", shop.path.display());
        assert!(message.starts_with(&beginning), "{message}");
    }
}

#[tokio::test]
async fn an_index_that_lacks_rows_is_damage() {
    let shop = Shop::new("shop.db", "wal");
    let sqlite = shop.connect();
    sqlite
        .execute_batch(
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = 'CREATE INDEX by_order ON ledger(cents)' WHERE name = 'by_order'",
        )
        .unwrap();
    drop(sqlite);
    let error = refused(&shop).await;
    assert_eq!(error.code(), ErrorCode::SourceDamaged);
    assert_eq!(
        error.to_string(),
        format!(
            "the database {} is damaged: row 1 missing from index by_order; row 2 missing from index by_order; \
             row 3 missing from index by_order; 97 more",
            shop.path.display()
        )
    );
}

#[tokio::test]
async fn a_lock_that_stays_is_waited_for_and_then_told() {
    let shop = Shop::new("shop.db", "delete");
    let holder = shop.connect();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let engine = shop.engine().with_lock_deadline(Duration::from_millis(300));
    let error = engine.open_capture(&shop.context()).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::SourceUnreachable);
    assert_eq!(
        error.to_string(),
        format!("the database {} was locked by others for 0.3 s", shop.path.display())
    );
    let context = shop.context();
    context.cancel.cancel();
    let error = shop.engine().open_capture(&context).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::RunCancelled);

    holder.execute_batch("COMMIT").unwrap();
    snapshot(&shop).await.unwrap();
}

#[tokio::test]
async fn a_lock_that_goes_away_is_waited_for() {
    let shop = Shop::new("shop.db", "delete");
    let holder = shop.connect();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let opening = {
        let (engine, context) = (shop.engine(), shop.context());
        async move { engine.open_capture(&context).await }
    };
    let release = async {
        tokio::task::yield_now().await;
        tokio::task::spawn_blocking(move || holder.execute_batch("COMMIT").unwrap()).await.unwrap();
    };
    let (capture, ()) = tokio::join!(opening, release);
    store(capture.unwrap(), &shop.base.join("scratch/stored.db")).await.unwrap();
}

#[tokio::test]
async fn a_file_that_this_process_reads_is_not_locked_meanwhile() {
    use crate::file_gate::{FILE_GATE, HeldBySqlite};
    let shop = Shop::new("shop.db", "wal");
    let id = connect::identity(&shop.path).unwrap();
    let pass = FILE_GATE.read(id).unwrap();
    let engine = shop.engine().with_lock_deadline(Duration::from_millis(50));
    let error = engine.open_capture(&shop.context()).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::SourceUnreachable);
    drop(pass);
    let capture = engine.open_capture(&shop.context()).await.unwrap();
    assert_eq!(FILE_GATE.read(id).unwrap_err(), HeldBySqlite);
    let log = connect::identity(&shop.base.join("shop.db-wal")).unwrap();
    assert_eq!(FILE_GATE.read(log).unwrap_err(), HeldBySqlite);
    store(capture, &shop.base.join("scratch/stored.db")).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while FILE_GATE.read(id).is_err() {
        assert!(Instant::now() < deadline, "the hold ends with the capture");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_log_that_is_replaced_under_the_capture_makes_it_worthless() {
    let shop = Shop::new("shop.db", "wal");
    let capture = shop.engine().open_capture(&shop.context()).await.unwrap();
    fs::rename(shop.base.join("shop.db-wal"), shop.base.join("moved")).unwrap();
    let error = store(capture, &shop.base.join("scratch/stored.db")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::CaptureInconsistent);
    assert_eq!(
        error.to_string(),
        format!("the database {} or its write-ahead log was replaced while it was read", shop.path.display())
    );
}

#[tokio::test]
async fn what_only_the_application_understands_is_saved_with_a_warning() {
    let shop = Shop::new("shop.db", "wal");
    let sqlite = shop.connect();
    sqlite
        .execute_batch(
            "CREATE TABLE own(x TEXT); CREATE INDEX i ON own(x);
             PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = 'CREATE TABLE own(x TEXT COLLATE HOUSE)' WHERE name = 'own'",
        )
        .unwrap();
    drop(sqlite);
    let log = Arc::new(TestLog::default());
    let context = EngineContext { log: log.clone(), ..shop.context() };
    let capture = shop.engine().open_capture(&context).await.unwrap();
    let manifest = store(capture, &shop.base.join("scratch/stored.db")).await.unwrap();
    assert_eq!(manifest.databases[0].tables["own"], TableManifest { rows: 0 });
    let warnings = log.warnings.lock().clone();
    assert_eq!(
        warnings,
        ["the integrity of the database could not be checked: no such collation sequence: HOUSE"]
    );
}

#[tokio::test]
async fn a_probe_tells_what_would_be_captured() {
    let shop = Shop::new("shop.db", "delete");
    let report = shop.engine().probe(&shop.context()).await.unwrap();
    assert_eq!(report.logical_bytes, fs::metadata(&shop.path).unwrap().len());
    assert_eq!(report.version, rusqlite::version());
    assert_eq!(
        report.warnings,
        ["its journal mode is delete: it is copied before it is stored, and writers may have to wait"]
    );
    assert_eq!(shop.names(), ["shop.db"]);
}
