//! Exports of anybody: an error at worst.

use super::*;

/// An export by hand: a folder, a file with attributes, a link, a manifest, and the checksums that agree.
struct Export {
    tar: tar::Builder<Vec<u8>>,
    sums: Vec<u8>,
}

impl Export {
    fn new() -> Self {
        let head = serde_json::json!({
            "format": ROOT, "version": 1, "snapshot": "ab".repeat(32), "source": "shop", "snapshot_type": "full",
            "committed_at": "2026-11-21T12:00:00Z", "hostname": "db1", "paths": ["/srv"]
        });
        let mut export = Self { tar: tar::Builder::new(Vec::new()), sums: Vec::new() };
        export.add(HEAD, head.to_string().as_bytes());
        export
    }

    fn add(&mut self, path: &str, bytes: &[u8]) {
        let mut header = header(tar::EntryType::Regular);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, format!("{ROOT}/{path}"), bytes).unwrap();
        if let Some(path) = path.strip_prefix(&format!("{TREE}/")) {
            self.sums.extend(sum_line(&Sha256::digest(bytes).into(), path.as_bytes()));
        }
    }

    fn example() -> Vec<u8> {
        let mut export = Self::new();
        let attributes = [
            ("mtime", &b"1795000000.123456789"[..]),
            ("SCHILY.xattr.user.a", b"value"),
            ("LIBARCHIVE.xattr.user.b%20c", b"dmFsdWU="),
        ];
        export.tar.append_pax_extensions(attributes).unwrap();
        export.add("tree/srv/page", b"some content");
        let mut link = header(tar::EntryType::Symlink);
        let path = format!("{ROOT}/tree/srv/{}", "long".repeat(60));
        export.tar.append_link(&mut link, path, "../elsewhere").unwrap();
        export.add("tree/.holdfast/manifest.json", b"{}");
        let sums = std::mem::take(&mut export.sums);
        export.add(SUMS, &sums);
        export.tar.into_inner().unwrap()
    }
}

fn header(entry_type: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_size(0);
    header.set_mode(0o644);
    header.set_mtime(1_795_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// What came of an archive that is compressed as it is.
fn read(tar: &[u8]) -> Result<Archive, Failure> {
    let packed = zstd::encode_all(tar, 1).unwrap();
    let (sender, items) = crossbeam_channel::bounded::<Item>(PARTS_MAX);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            items.into_iter().for_each(|item| item.content.into_iter().flatten().for_each(drop))
        });
        take_apart(&*packed, &sender).inspect(|_| drop(sender))
    })
}

#[test]
fn the_example_is_an_export() {
    let archive = read(&Export::example()).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((archive.head.hostname.as_str(), archive.own_files.len()), ("db1", 1));
}

#[test]
fn a_damaged_export_is_an_error_and_nothing_worse() {
    holdfast_fuzz::campaign("export", vec![Export::example()], |input| {
        read(input).map_or_else(|failure| failure.to_string(), |_| "whole".to_owned())
    });
}

#[test]
fn a_time_with_a_strange_fraction_is_passed_over() {
    let mut metadata = NodeMetadata::plain(NodeType::File, 0o644, FileTime::default());
    extend(&mut metadata, b"mtime", "1.ümlauts".as_bytes());
    assert_eq!(metadata.mtime, FileTime::default());
    extend(&mut metadata, b"mtime", b"1.5");
    assert_eq!(metadata.mtime, FileTime { seconds: 1, nanoseconds: 500_000_000 });
}

#[test]
fn a_name_that_unpacks_to_more_than_any_has_is_refused() {
    let mut export = Export::new();
    let mut header = header(tar::EntryType::GNULongName);
    header.set_path("././@LongLink").unwrap();
    let length = 2 * HEADERS_BYTES_MAX;
    header.set_size(length);
    header.set_cksum();
    export.tar.append(&header, io::repeat(b'a').take(length)).unwrap();
    export.add("tree/named", b"");
    let failure = read(&export.tar.into_inner().unwrap()).err().unwrap();
    assert_eq!(
        failure.to_string(),
        "[HF-3019] the file can not be imported: it is damaged or incomplete: the names and attributes of an entry are too long"
    );
}
