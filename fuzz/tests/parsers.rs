//! The parsers of what lies in a repository, and of fleet files. Those of dumps and of exports are private to their
//! packages and have their campaigns there.

use holdfast_fuzz::campaign;
use holdfast_model::fleet::{FleetFile, read_fleet};
use holdfast_model::secret::Secret;
use holdfast_repository::config::Config;
use holdfast_repository::crypto::{MasterKey, Sealer};
use holdfast_repository::format::{ObjectName, PACK_TRAILER_BYTES};
use holdfast_repository::id::{BlobId, BlobType, IndexId, KeyId, PackId};
use holdfast_repository::index::{IndexPack, encode_index, visit_index};
use holdfast_repository::key_slot::{KeyOrigin, ScryptCost, open_key, seal_key};
use holdfast_repository::pack::{PackBuilder, SealedPack, header_length, parse_header};
use holdfast_repository::snapshot::SnapshotObject;
use holdfast_repository::tree::{FileTime, NodeMetadata, NodeType, Tree, TreeEncoder};
use holdfast_repository::unpacked::decode_unpacked;

/// In a word, what came of an input.
fn outcome<T>(result: Result<T, impl std::fmt::Display>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "read".to_owned())
}

fn key() -> MasterKey {
    MasterKey::from_bytes(&[7; 64])
}

fn pack() -> SealedPack {
    let sealer = Sealer::new(&key());
    let mut builder = PackBuilder::new(BlobType::Data, 1 << 16);
    for number in 0..20_u8 {
        let mut sealed = Vec::new();
        sealer.seal(&vec![number; 100 + usize::from(number)], &mut sealed);
        builder.push(BlobId::of(&[number]), &sealed, (number % 2 == 0).then_some(1000));
    }
    builder.finish(&sealer)
}

#[test]
fn headers_of_packs() {
    let sealer = Sealer::new(&key());
    let whole = pack();
    let (body, trailer) = whole.bytes.split_last_chunk::<PACK_TRAILER_BYTES>().unwrap();
    let length = header_length(whole.id, whole.bytes.len() as u64, *trailer).unwrap();
    let mut header = Vec::new();
    sealer.open(&body[body.len() - length..], &mut header).unwrap();
    let bytes = whole.bytes.len() as u64;
    campaign("pack-header", vec![header], |input| {
        // A header that is damaged before it is sealed: what a defect of another writer would leave.
        let mut sealed = Vec::new();
        sealer.seal(input, &mut sealed);
        outcome(parse_header(whole.id, bytes, &sealed, &sealer))
    });
}

#[test]
fn ends_of_packs() {
    let sealer = Sealer::new(&key());
    campaign("pack", vec![pack().bytes.to_vec()], |input| {
        let (id, bytes) = (PackId::of(input), input.len() as u64);
        let Some((body, trailer)) = input.split_last_chunk::<PACK_TRAILER_BYTES>() else {
            return "short".to_owned();
        };
        outcome(header_length(id, bytes, *trailer).and_then(|length| {
            let start = body.len().checked_sub(length).expect("a header fits into its pack");
            parse_header(id, bytes, &body[start..], &sealer)
        }))
    });
}

#[test]
fn index_objects() {
    let pack = pack();
    let example = encode_index(&[IndexPack { id: pack.id, entries: pack.entries }]);
    let foreign = br#"{"supersedes":["ab"],"packs":null,"later":[{"a":[1.5,null]}]}"#.to_vec();
    let name = ObjectName::Index(IndexId::of(b""));
    campaign("index", vec![example, foreign], |input| outcome(visit_index(&name, input, |_, _| {})));
}

#[test]
fn unpacked_objects() {
    let sealer = Sealer::new(&key());
    let compressed = |text: &[u8]| {
        let mut bytes = vec![2];
        bytes.extend(zstd::encode_all(text, 3).unwrap());
        bytes
    };
    // Four megabytes that take a few hundred bytes: what is inside is not believed.
    let examples =
        vec![b"{\"a\":1}".to_vec(), compressed(b"{\"packs\":[]}"), compressed(&vec![b' '; 4 << 20])];
    campaign("unpacked", examples, |input| {
        let mut sealed = Vec::new();
        sealer.seal(input, &mut sealed);
        outcome(decode_unpacked(&ObjectName::Index(IndexId::of(&sealed)), &sealed, &sealer))
    });
}

#[test]
fn trees() {
    let time = FileTime { seconds: 1_795_000_000, nanoseconds: 5 };
    let mut encoder = TreeEncoder::new();
    let mut metadata = NodeMetadata::plain(NodeType::File, 0o644, time);
    metadata.xattrs.push((b"user.a".to_vec(), b"value".to_vec()));
    encoder.push_file(b"a \"file\" \xff", &metadata, 12, &[BlobId::of(b"1"), BlobId::of(b"2")]);
    let mut link = NodeMetadata::plain(NodeType::Symlink, 0o777, time);
    link.link_target = Some(b"to/\xff".to_vec());
    encoder.push_file(b"b", &link, 0, &[]);
    let foreign =
        br#"{"nodes":[{"name":"a","type":"file","mode":420,"later":[1],"mtime":"2024-01-01T00:00:00.1+02:00",
        "content":null,"extended_attributes":[{"name":"user.x","value":null}]}]}"#;
    let id = BlobId::of(b"");
    campaign("tree", vec![encoder.finish(), foreign.to_vec()], |input| outcome(Tree::parse(&id, input)));
}

#[test]
fn snapshots() {
    let example = br#"{"time":"2026-11-21T08:21:41.1+01:00","tree":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "paths":null,"hostname":"vm","uid":1000,"excludes":["*.tmp"],"tags":["holdfast"],"later":{"x":1},
        "summary":{"backup_start":"a","files_new":7,"later":true}}"#;
    campaign("snapshot", vec![example.to_vec()], |input| {
        outcome(serde_json::from_slice::<SnapshotObject>(input))
    });
}

#[test]
fn configs() {
    campaign("config", vec![Config::generate().to_json()], |input| outcome(Config::from_json(input)));
}

#[test]
fn keys() {
    let origin = KeyOrigin {
        created: jiff::Timestamp::UNIX_EPOCH,
        hostname: "db1".to_owned(),
        username: "holdfast".to_owned(),
    };
    let password = Secret::new("a password");
    let example = seal_key(&key(), &password, ScryptCost { log_n: 1, r: 1, p: 1 }, &origin).unwrap();
    let name = ObjectName::Key(KeyId::of(b""));
    campaign("key", vec![example], |input| {
        outcome(open_key(&name, input, &password).map(|key| key.is_some()))
    });
}

#[test]
fn fleet_files() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/fleet");
    let files = std::fs::read_dir(folder).unwrap();
    let examples: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(examples.len() >= 3, "the example fleet is there");
    campaign("fleet", examples, |input| {
        let text = String::from_utf8_lossy(input).into_owned();
        let errors =
            read_fleet(&[FleetFile { name: "fuzz.yaml".to_owned(), text }]).err().unwrap_or_default();
        errors.first().map_or_else(|| "read".to_owned(), |error| error.to_string())
    });
}
