//! The cache of the parent's trees may make a backup faster, never different.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A tree in memory: path → content and the second of its last change. A path with entries below it is a folder.
type Model = BTreeMap<Vec<u8>, ModelFile>;

type ModelFile = (Vec<u8>, i64);

type Parts = Vec<Vec<u8>>;

const NAMES: [&str; 4] = ["a", "a b", "b", "z"];

#[derive(Debug, Clone)]
enum Change {
    Put { path: Vec<usize>, content: u8 },
    Remove { path: Vec<usize> },
}

fn path_of(parts: &[usize]) -> Vec<u8> {
    parts.iter().map(|&part| NAMES[part]).collect::<Vec<_>>().join("/").into_bytes()
}

fn change() -> impl Strategy<Value = Change> {
    let path = || proptest::collection::vec(0..NAMES.len(), 1..5);
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, content)| Change::Put { path, content }),
        1 => path().prop_map(|path| Change::Remove { path }),
    ]
}

fn apply(model: &mut Model, change: &Change, second: i64) {
    let path = path_of(match change {
        Change::Put { path, .. } | Change::Remove { path } => path,
    });
    let below = [&path[..], b"/"].concat();
    model.retain(|other, _| *other != path && !other.starts_with(&below));
    if let Change::Put { content, .. } = change {
        // What was a file on the way is a folder now.
        model.retain(|other, _| !path.starts_with(&[&other[..], b"/"].concat()));
        model.insert(path, (vec![*content; 40], second));
    }
}

/// The entries of a model as a walk gives them: folders before what is in them, siblings by raw name.
fn entries(house: &House, model: &Model) -> Vec<WriteEntry> {
    let mut found: BTreeMap<Parts, Option<&ModelFile>> = BTreeMap::new();
    for (path, file) in model {
        let parts: Vec<Vec<u8>> = path.split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect();
        for length in 1..parts.len() {
            found.entry(parts[..length].to_vec()).or_insert(None);
        }
        found.insert(parts, Some(file));
    }
    let entry = |(parts, file): (Parts, Option<&ModelFile>)| {
        let path = String::from_utf8(parts.join(&b'/')).unwrap();
        let Some((content, second)) = file else { return folder(&path) };
        let on_disk = house.file(&hex::encode(&path), content);
        let mut entry = super::file(&path, &on_disk);
        entry.metadata.mtime.seconds = *second;
        entry.metadata.ctime.seconds = *second;
        entry
    };
    found.into_iter().map(entry).collect()
}

struct Backup<'a> {
    house: &'a House,
    sink: &'a Arc<LocalSink>,
    cache: PathBuf,
}

impl Backup<'_> {
    fn run(&self, model: &Model, base: Option<BlobId>, cached: bool) -> (BlobId, Written) {
        let cache = cached.then(|| self.cache.clone());
        let context = WriterContext { tree_cache: cache, ..self.house.context(Arc::clone(self.sink) as _) };
        let parent = base.and_then(|root| parent(self.house, root));
        let mut writer = SnapshotWriter::new(context, options(), parent).unwrap();
        for entry in entries(self.house, model) {
            writer.add(entry).unwrap();
        }
        let own = vec![OwnFile { name: "manifest.json".into(), bytes: model.len().to_string().into_bytes() }];
        let finished = writer.finish(own, TIME).unwrap();
        self.house.runtime.block_on(self.sink.save_index()).unwrap();
        finished
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_backup_with_the_cache_is_the_same_as_one_without(
        rounds in proptest::collection::vec(proptest::collection::vec(change(), 0..6), 2..5),
    ) {
        let house = House::new();
        let sink = house.sink();
        let backup = Backup { house: &house, sink: &sink, cache: house.folder.path().join("cache") };
        let (mut model, mut base) = (Model::new(), None);
        for (second, changes) in rounds.iter().enumerate() {
            changes.iter().for_each(|change| apply(&mut model, change, second as i64));
            let (plain, told) = backup.run(&model, base, false);
            let (cached, counted) = backup.run(&model, base, true);
            prop_assert_eq!(cached, plain);
            let outline = |written: &Written| {
                let totals = written.totals;
                (totals.files, totals.folders, totals.bytes, totals.files_unchanged, totals.folders_unchanged)
            };
            prop_assert_eq!(outline(&counted), outline(&told));
            base = Some(cached);
        }
    }
}

fn two_folders() -> Model {
    let paths = ["a/a/a", "a/a/b", "a/b/a", "b/a", "b/z", "z"];
    paths.iter().map(|path| (path.as_bytes().to_vec(), (path.as_bytes().to_vec(), 7))).collect()
}

#[test]
fn with_the_cache_no_tree_of_the_parent_is_fetched() {
    let house = House::new();
    let sink = house.sink();
    let backup = Backup { house: &house, sink: &sink, cache: house.folder.path().join("cache") };
    let mut model = two_folders();
    let (first, _) = backup.run(&model, None, true);
    model.insert(b"a/b/a".to_vec(), (b"changed".to_vec(), 8));
    house.store.forget();
    let (_, written) = backup.run(&model, Some(first), true);
    assert_eq!(house.store.count(Verb::GetRange, ObjectKind::Pack), 0, "{:?}", house.store.calls());
    assert_eq!((written.totals.files, written.totals.files_unchanged), (6, 5));
    // Of `a`, `a/a`, `a/b`, `b` two are as they were.
    assert_eq!((written.totals.folders, written.totals.folders_unchanged), (4, 2));
}

#[test]
fn a_damaged_or_cut_cache_costs_time_and_nothing_else() {
    let house = House::new();
    let sink = house.sink();
    let backup = Backup { house: &house, sink: &sink, cache: house.folder.path().join("cache") };
    let model = two_folders();
    let (first, _) = backup.run(&model, None, true);
    let whole = std::fs::read(&backup.cache).unwrap();
    let damaged = (0..whole.len()).step_by(7).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        bytes
    });
    let cut = (0..whole.len()).step_by(61).map(|length| whole[..length].to_vec());
    for bytes in damaged.chain(cut) {
        std::fs::write(&backup.cache, bytes).unwrap();
        let (second, written) = backup.run(&model, Some(first), true);
        assert_eq!((second, written.totals.files_unchanged), (first, 6));
    }
    assert_eq!(std::fs::read(&backup.cache).unwrap().len(), whole.len());
}

#[test]
fn a_file_that_grew_while_it_was_read_is_read_again_next_time() {
    let house = House::new();
    let sink = house.sink();
    let backup = Backup { house: &house, sink: &sink, cache: house.folder.path().join("cache") };
    let on_disk = house.file("grows", b"long enough");
    let shorter = |context: WriterContext, parent| {
        let mut writer = SnapshotWriter::new(context, options(), parent).unwrap();
        let mut entry = file("grows", &on_disk);
        entry.metadata.size = 4;
        writer.add(folder("f")).unwrap();
        entry.path = b"f/grows".to_vec();
        writer.add(entry).unwrap();
        let finished = writer.finish(Vec::new(), TIME).unwrap();
        house.runtime.block_on(sink.save_index()).unwrap();
        finished
    };
    let context =
        || WriterContext { tree_cache: Some(backup.cache.clone()), ..house.context(Arc::clone(&sink) as _) };
    let (first, _) = shorter(context(), None);
    assert_eq!(house.content(first, "f/grows"), b"long enough");
    let (second, written) = shorter(context(), parent(&house, first));
    assert_eq!((second, written.totals.files_unchanged), (first, 0));
}
