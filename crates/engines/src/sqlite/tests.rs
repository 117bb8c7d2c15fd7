use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use holdfast_model::ErrorCode;
use holdfast_model::manifest::TableManifest;
use holdfast_model::restore::{CheckOutcome, Placement};
use rusqlite::{Connection, params};

use super::*;
use crate::test_support::{DirectoryContents, TestLog, context_with_scratch};
use crate::{Content, Entry, FileType, StoredSummary};

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
        sqlite.busy_timeout(Duration::from_secs(30)).unwrap();
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
        let (from, deadline) = (self.commits(), Instant::now() + Duration::from_secs(30));
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

fn order(placement: Placement, only: &[&str]) -> RestoreOrder {
    RestoreOrder {
        placement,
        only: only.iter().map(|&name| name.to_owned()).collect(),
        snapshot_short: "1a2b3c4d".to_owned(),
        allowed_paths: Vec::new(),
    }
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
    assert_eq!(shop.names(), ["shop.db"]);
}

#[tokio::test]
async fn odd_names_of_files_and_tables_round_trip() {
    for name in ["-rf it's \"odd\"\n名.db", " ", "a'b;--", "?mode=memory", "file:x", "%41"] {
        let shop = Shop::new(name, "wal");
        for table in ["-t", "it's", "a \"b\"", "new\nline", "名", "select", "a.b"] {
            let sql = format!("CREATE TABLE {0}(x); INSERT INTO {0} VALUES (1), (2)", connect::quote(table));
            shop.connect().execute_batch(&sql).unwrap();
        }
        let (_stored, contents) = snapshot(&shop).await.unwrap();
        assert_eq!(contents.manifest().databases[0].tables["new\nline"], TableManifest { rows: 2 });
        let report = shop
            .engine()
            .restore(&order(Placement::Beside, &[]), contents.clone(), &shop.context())
            .await
            .unwrap();
        assert_eq!(report.rows, Some(1014));
        let report = shop
            .engine()
            .restore(
                &order(
                    Placement::Into(shop.base.join("part.db").to_str().unwrap().into()),
                    &["a \"b\"", "a.b"],
                ),
                contents,
                &shop.context(),
            )
            .await
            .unwrap();
        assert_eq!(report.rows, Some(4));
        assert_eq!(rows(&shop.base.join("part.db"), "a \"b\""), 2);
    }
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
    let deadline = Instant::now() + Duration::from_secs(20);
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

// --- restores

#[tokio::test]
async fn a_restore_goes_beside_the_original_and_can_be_discarded() {
    let shop = Shop::new("shop.db", "wal");
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    shop.connect().execute_batch("DELETE FROM ledger; DELETE FROM orders").unwrap();
    let (engine, order) = (shop.engine(), order(Placement::Beside, &[]));
    let preview = engine.preview_restore(&order, contents.manifest(), &shop.context()).await.unwrap();
    assert!(preview.checks.iter().all(|check| check.outcome == CheckOutcome::Ok), "{:?}", preview.checks);
    let report = engine.restore(&order, contents.clone(), &shop.context()).await.unwrap();
    assert_eq!((report.rows, report.rows_expected), (Some(1000), Some(1000)));
    assert_eq!(report.targets, preview.targets);
    assert_eq!(shop.names(), ["shop.db", "shop_restored_1a2b3c4d.db"]);
    assert_eq!(rows(&shop.base.join("shop_restored_1a2b3c4d.db"), "orders"), 500);
    assert_eq!(rows(&shop.path, "orders"), 0);

    let error = engine.restore(&order, contents, &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetExists);
    let open = Connection::open(&report.targets[0].restored).unwrap();
    open.query_row("SELECT 1 FROM orders", [], |_| Ok(())).unwrap();
    let error = engine.discard(&report.targets, &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetInUse);
    drop(open);
    engine.discard(&report.targets, &shop.context()).await.unwrap();
    assert_eq!(shop.names(), ["shop.db"]);
}

#[tokio::test]
async fn in_place_keeps_the_old_database_with_everything_that_was_in_its_log() {
    let shop = Shop::new("shop.db", "wal");
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    // An application that was killed: its last commits are in the log only.
    let application = shop.connect();
    add_order(&application);
    for name in ["shop.db", "shop.db-wal"] {
        fs::copy(shop.base.join(name), shop.base.join("scratch").join(name)).unwrap();
    }
    drop(application);
    for name in ["shop.db", "shop.db-wal"] {
        fs::rename(shop.base.join("scratch").join(name), shop.base.join(name)).unwrap();
    }
    let (engine, order) = (shop.engine(), order(Placement::InPlace, &[]));
    let report = engine.restore(&order, contents, &shop.context()).await.unwrap();
    let promoted = engine.promote(&report.targets, "20261121T081500Z", &shop.context()).await.unwrap();
    let kept = shop.base.join("shop.db_before_20261121T081500Z");
    assert_eq!(promoted[0].kept.as_deref(), kept.to_str());
    assert_eq!(shop.names(), ["shop.db", "shop.db_before_20261121T081500Z"]);
    assert_eq!((rows(&shop.path, "orders"), rows(&kept, "orders")), (500, 501));
    engine.discard(&promoted, &shop.context()).await.unwrap();
    assert_eq!(shop.names(), ["shop.db"]);
}

#[tokio::test]
async fn a_database_in_use_is_not_replaced() {
    for journal_mode in ["wal", "delete"] {
        let shop = Shop::new("shop.db", journal_mode);
        let (_stored, contents) = snapshot(&shop).await.unwrap();
        let engine = shop.engine();
        let report =
            engine.restore(&order(Placement::InPlace, &[]), contents.clone(), &shop.context()).await.unwrap();
        // Idle: with a rollback journal it holds no lock.
        let application = shop.connect();
        application.query_row("SELECT 1 FROM orders", [], |_| Ok(())).unwrap();
        let before = shop.names();
        let error = engine.promote(&report.targets, "T1", &shop.context()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::TargetInUse);
        let pid = std::process::id();
        let beginning = format!("the database {} is open in ", shop.path.display());
        let message = error.to_string();
        assert!(message.starts_with(&beginning) && message.ends_with(&format!("(pid {pid})")), "{message}");
        assert_eq!(shop.names(), before);
        let mut order = order(Placement::InPlace, &[]);
        order.snapshot_short = "2b3c4d5e".to_owned();
        let preview = engine.preview_restore(&order, contents.manifest(), &shop.context()).await.unwrap();
        let check = preview.checks.iter().find(|check| check.name == "in use").unwrap();
        assert_eq!(check.outcome, CheckOutcome::Warning);
        add_order(&application);
        drop(application);
        engine.promote(&report.targets, "T1", &shop.context()).await.unwrap();
        assert_eq!(rows(&shop.path, "orders"), 500);
    }
}

#[tokio::test]
async fn a_damaged_live_database_is_replaced_and_kept_with_its_log() {
    let shop = Shop::new("shop.db", "wal");
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    for (round, content) in ["overwritten by something else", ""].into_iter().enumerate() {
        fs::write(&shop.path, content).unwrap();
        fs::write(shop.base.join("shop.db-wal"), "and this, too").unwrap();
        let engine = shop.engine();
        let mut order = order(Placement::InPlace, &[]);
        order.snapshot_short = format!("{round:08}");
        let report = engine.restore(&order, contents.clone(), &shop.context()).await.unwrap();
        engine.promote(&report.targets, &format!("T{round}"), &shop.context()).await.unwrap();
        assert_eq!(rows(&shop.path, "orders"), 500);
        let kept =
            |suffix| fs::read_to_string(shop.base.join(format!("shop.db_before_T{round}{suffix}"))).unwrap();
        assert_eq!((kept(""), kept("-wal")), (content.to_owned(), "and this, too".to_owned()));
    }
}

#[tokio::test]
async fn single_tables_come_with_rows_row_numbers_indexes_triggers_and_sequences() {
    let shop = Shop::new("shop.db", "wal");
    shop.connect()
        .execute_batch(
            "PRAGMA user_version = 7;
             CREATE TABLE log(message TEXT, loud TEXT AS (upper(message)) STORED);
             INSERT INTO log(message) VALUES ('a'), ('b'), ('c');
             DELETE FROM log WHERE message = 'a';
             CREATE TRIGGER t AFTER INSERT ON log BEGIN INSERT INTO orders(note) VALUES (new.message); END;
             CREATE TABLE keyed(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
             INSERT INTO keyed VALUES ('x', 1);
             CREATE VIRTUAL TABLE notes USING fts5(body);
             INSERT INTO notes VALUES ('one');
             DELETE FROM ledger WHERE order_id = 500; DELETE FROM orders WHERE id = 500;",
        )
        .unwrap();
    let (_stored, contents) = snapshot(&shop).await.unwrap();
    let (engine, context) = (shop.engine(), shop.context());
    let into = shop.base.join("part.db");
    let placement = Placement::Into(into.to_str().unwrap().to_owned());
    let only = ["orders", "main.log", "shop.db/keyed"];
    let report = engine.restore(&order(placement.clone(), &only), contents.clone(), &context).await.unwrap();
    assert_eq!((report.rows, report.rows_expected), (Some(502), Some(502)));
    let part = Connection::open(&into).unwrap();
    let text = |sql: &str| part.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("SELECT group_concat(rowid || loud) FROM log"), "2B,3C");
    assert_eq!(
        text(
            "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite%' ORDER BY 1)"
        ),
        "keyed,log,orders,t"
    );
    assert_eq!(text("SELECT seq || '' FROM sqlite_sequence"), "500");
    let version: i64 = part.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 7);
    drop(part);
    assert!(fs::read_dir(shop.base.join("scratch")).unwrap().next().is_none(), "nothing stays in scratch");

    let fails = |placement: Placement, only: &str| {
        let (engine, context, contents) = (engine.clone(), context.clone(), contents.clone());
        let order = order(placement, &[only]);
        async move {
            let error = engine.restore(&order, contents, &context).await.unwrap_err();
            (error.code(), error.to_string())
        }
    };
    let elsewhere = Placement::Into(shop.base.join("other.db").to_str().unwrap().to_owned());
    assert_eq!(
        fails(elsewhere.clone(), "missing").await,
        (
            ErrorCode::PathNotInSnapshot,
            "the snapshot has no table missing, only keyed, ledger, log, notes, orders".to_owned()
        )
    );
    assert_eq!(
        fails(elsewhere, "notes").await,
        (
            ErrorCode::Unsupported,
            "the table notes is virtual and cannot be restored alone: restore the whole database".to_owned()
        )
    );
    assert!(!shop.base.join("other.db").exists());
    assert_eq!(fails(Placement::InPlace, "orders").await.0, ErrorCode::Unsupported);
}

#[tokio::test]
async fn a_restored_database_that_is_not_what_was_captured_is_removed() {
    let shop = Shop::new("shop.db", "wal");
    let (stored, contents) = snapshot(&shop).await.unwrap();
    let stored = stored.path().join("shop.db");
    let beside = shop.base.join("shop_restored_1a2b3c4d.db");
    let (engine, order) = (shop.engine(), order(Placement::Beside, &[]));

    let sqlite = Connection::open(&stored).unwrap();
    sqlite.execute_batch("PRAGMA journal_mode = DELETE; DELETE FROM ledger WHERE order_id = 3").unwrap();
    drop(sqlite);
    let error = engine.restore(&order, contents.clone(), &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RestoreMismatch);
    assert_eq!(
        error.to_string(),
        format!("the restored {} has 499 rows in ledger, but the manifest says 500", beside.display())
    );
    assert_eq!(shop.names(), ["shop.db"]);

    damage(&stored);
    let error = engine.restore(&order, contents, &shop.context()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RestoreMismatch);
    let message = error.to_string();
    let beginning = format!("the restored {} is damaged: ", beside.display());
    assert!(message.starts_with(&beginning), "{message}");
    assert_eq!(shop.names(), ["shop.db"]);
}

#[tokio::test]
#[ignore = "a measurement, for release builds: captures the database named in HOLDFAST_SQLITE"]
async fn measure_the_capture() {
    let path = PathBuf::from(std::env::var_os("HOLDFAST_SQLITE").expect("HOLDFAST_SQLITE names a database"));
    for _ in 0..3 {
        let scratch = tempfile::tempdir_in(path.parent().unwrap()).unwrap();
        let started = Instant::now();
        let capture = engine(&path).open_capture(&context_with_scratch(scratch.path())).await.unwrap();
        let opened = started.elapsed();
        let manifest = store(capture, Path::new("/dev/null")).await.unwrap();
        println!(
            "{} bytes: view after {:.3} s, all after {:.3} s",
            manifest.logical_bytes,
            opened.as_secs_f64(),
            started.elapsed().as_secs_f64()
        );
    }
}
