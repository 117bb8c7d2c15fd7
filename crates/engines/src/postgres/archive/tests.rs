use proptest::prelude::*;

use super::*;

/// Writes an archive by hand, so that every field and every cut is under the test's control.
struct Builder {
    bytes: Vec<u8>,
    minor: u8,
}

impl Builder {
    fn new(minor: u8, entries: i64) -> Self {
        let mut builder = Self { bytes: b"PGDMP".to_vec(), minor };
        builder.bytes.extend([1, minor, 0, 4, 8, 1]);
        if minor >= 15 {
            builder.bytes.push(0);
        } else {
            builder.number(0);
        }
        for part in [27, 19, 8, 21, 10, 126, 0] {
            builder.number(part);
        }
        builder.text(Some("my db"));
        builder.text(Some("15.18"));
        builder.text(Some("15.18"));
        builder.number(entries);
        builder
    }

    fn number(&mut self, value: i64) {
        self.bytes.push(u8::from(value < 0));
        self.bytes.extend(&value.unsigned_abs().to_le_bytes()[..4]);
    }

    fn text(&mut self, text: Option<&str>) {
        match text {
            None => self.number(-1),
            Some(text) => {
                self.number(i64::try_from(text.len()).unwrap());
                self.bytes.extend(text.as_bytes());
            }
        }
    }

    fn entry(&mut self, id: i64, has_data: bool, kind: &str, schema: Option<&str>, tag: &str, needs: &[i64]) {
        self.number(id);
        self.number(i64::from(has_data));
        self.text(Some("1259"));
        self.text(Some("16384"));
        self.text(Some(tag));
        self.text(Some(kind));
        self.number(3);
        self.text(Some("CREATE SOMETHING;"));
        self.text(Some(""));
        self.text(None);
        self.text(schema);
        self.text(None);
        self.text(Some("heap"));
        if self.minor >= 16 {
            self.number(114);
        }
        self.text(Some("owner"));
        self.text(Some("false"));
        for need in needs {
            self.text(Some(&need.to_string()));
        }
        self.text(None);
        self.bytes.push(1);
        self.bytes.extend([0; 8]);
    }

    fn table(&mut self, id: i64, pieces: &[&str]) {
        self.bytes.push(1);
        self.number(id);
        for piece in pieces {
            self.text(Some(piece));
        }
        self.number(0);
    }

    fn objects(&mut self, id: i64, objects: &[&str]) {
        self.bytes.push(3);
        self.number(id);
        for (number, object) in (16_400..).zip(objects) {
            self.number(number);
            if !object.is_empty() {
                self.text(Some(object));
            }
            self.number(0);
        }
        self.number(0);
    }
}

/// The archive and how long it is up to the end of the table of contents.
fn archive(minor: u8) -> (Vec<u8>, usize) {
    let mut builder = Builder::new(minor, 5);
    builder.entry(10, false, "DATABASE", None, "my db", &[]);
    builder.entry(215, false, "TABLE", Some("public"), "a\nb", &[]);
    builder.entry(3381, true, "TABLE DATA", Some("public"), "a\nb", &[215]);
    builder.entry(3382, true, "TABLE DATA", Some("public"), "empty", &[]);
    builder.entry(3391, true, "BLOBS", None, "BLOBS", &[]);
    let toc = builder.bytes.len();
    builder.table(3381, &["1\tx\n", "2\tl\\nm\n", "\\.\n\n\n"]);
    builder.table(3382, &["\\.\n\n\n"]);
    builder.objects(3391, &["abc", ""]);
    (builder.bytes, toc)
}

fn walk(bytes: &[u8], piece: usize) -> Result<ArchiveSummary, ArchiveError> {
    let mut walker = ArchiveWalker::new(Keep::WithData);
    for piece in bytes.chunks(piece) {
        walker.feed(piece)?;
    }
    walker.finish()
}

#[test]
fn rows_and_large_objects_are_counted_however_the_stream_is_cut() {
    for minor in [14, 15, 16] {
        let (bytes, _) = archive(minor);
        for piece in [1, 2, 3, 7, 64, bytes.len()] {
            let summary = walk(&bytes, piece).unwrap();
            assert_eq!(summary.bytes, bytes.len() as u64);
            assert_eq!(summary.large_objects, 2);
            let tables: Vec<_> = summary
                .tables
                .iter()
                .map(|table| (String::from_utf8(table.name.clone()).unwrap(), table.rows))
                .collect();
            assert_eq!(tables, [("a\nb".to_owned(), 2), ("empty".to_owned(), 0)]);
        }
    }
}

#[test]
fn an_archive_cut_anywhere_is_not_whole() {
    let (bytes, toc) = archive(14);
    for length in 0..bytes.len() {
        let error = walk(&bytes[..length], 4096).unwrap_err();
        match error {
            ArchiveError::EndedEarly { bytes, .. } => assert_eq!(bytes, length as u64),
            ArchiveError::DataMissing { .. } => assert!(length >= toc),
            other => panic!("{other}"),
        }
    }
    assert!(matches!(walk(&bytes[..toc], 4096), Err(ArchiveError::DataMissing { missing: 3, .. })));
}

#[test]
fn all_entries_are_kept_on_request_with_what_they_need() {
    let (bytes, toc) = archive(16);
    let mut walker = ArchiveWalker::new(Keep::All);
    walker.feed(&bytes[..toc]).unwrap();
    assert!(walker.toc_complete());
    let entries = walker.into_entries().unwrap();
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[0].definition.as_deref(), Some(b"CREATE SOMETHING;".as_slice()));
    assert_eq!(entries[1].definition, None);
    assert_eq!(entries[2].dependencies, [215]);
    assert_eq!(entries[2].schema.as_deref(), Some(b"public".as_slice()));
    assert_eq!(entries[2].owner, b"owner");
}

#[test]
fn a_table_without_its_end_mark_is_damaged() {
    let mut builder = Builder::new(14, 1);
    builder.entry(1, true, "TABLE DATA", Some("public"), "t", &[]);
    builder.table(1, &["1\n", "2\n"]);
    assert!(matches!(walk(&builder.bytes, 64), Err(ArchiveError::Malformed { .. })));
}

#[test]
fn data_twice_or_of_an_unknown_entry_is_damaged() {
    for id in [1, 2] {
        let mut builder = Builder::new(14, 1);
        builder.entry(1, true, "TABLE DATA", Some("public"), "t", &[]);
        builder.table(1, &["\\.\n\n\n"]);
        builder.table(id, &["\\.\n\n\n"]);
        assert!(matches!(walk(&builder.bytes, 64), Err(ArchiveError::Malformed { .. })));
    }
}

#[test]
fn what_is_no_plain_custom_archive_is_refused_at_its_head() {
    assert_eq!(walk(b"-- PostgreSQL database dump", 64), Err(ArchiveError::NotAnArchive));
    let (mut bytes, _) = archive(15);
    bytes[11] = 3;
    assert_eq!(walk(&bytes, 64), Err(ArchiveError::Compressed));
    bytes[6] = 99;
    assert_eq!(walk(&bytes, 64), Err(ArchiveError::UnsupportedVersion(1, 99)));
}

proptest! {
    #[test]
    fn damage_never_panics_nor_allocates_without_bound(
        position in 0usize..900,
        byte in any::<u8>(),
        piece in 1usize..100,
    ) {
        let (mut bytes, _) = archive(14);
        let position = position % bytes.len();
        bytes[position] = byte;
        let _ = walk(&bytes, piece);
    }

    #[test]
    fn any_bytes_after_a_good_head_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = archive(14).0;
        bytes.truncate(11);
        bytes.extend(tail);
        let _ = walk(&bytes, 17);
    }
}

#[test]
fn a_damaged_archive_is_an_error_and_nothing_worse() {
    let examples = [14, 15, 16].map(|minor| archive(minor).0).to_vec();
    holdfast_fuzz::campaign("pg-archive", examples, |input| {
        let mut walker = ArchiveWalker::new(Keep::All);
        // In pieces, as it comes from a pipe.
        let walked = input.chunks(1000).try_for_each(|piece| walker.feed(piece));
        walked.and_then(|()| walker.finish()).map_or_else(|error| error.to_string(), |_| "whole".to_owned())
    });
}
