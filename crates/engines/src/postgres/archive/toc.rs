//! The table of contents of an archive: what an entry holds, and in which order.

/// One entry of the table of contents. Names are raw bytes in the encoding of the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TocEntry {
    /// The number by which entries refer to each other.
    pub(crate) id: i64,
    /// Whether a block of data belongs to it.
    pub(crate) has_data: bool,
    /// What it is: `TABLE`, `TABLE DATA`, `INDEX`, …
    pub(crate) kind: String,
    /// Its schema, if it lies in one.
    pub(crate) schema: Option<Vec<u8>>,
    /// Its name, for some kinds with that of its table before it.
    pub(crate) tag: Vec<u8>,
    /// Its owner.
    pub(crate) owner: Vec<u8>,
    /// The SQL that makes it; kept only for entries that concern the database itself.
    pub(crate) definition: Option<Vec<u8>>,
    /// Entries that must exist before it.
    pub(crate) dependencies: Vec<i64>,
}

impl TocEntry {
    /// All its texts in the encoding of the database.
    pub(crate) fn texts(&mut self) -> impl Iterator<Item = &mut Vec<u8>> {
        let optional = self.schema.iter_mut().chain(self.definition.iter_mut());
        [&mut self.tag, &mut self.owner].into_iter().chain(optional)
    }

    /// Whether it makes or changes the database itself and not something in it.
    pub(crate) fn concerns_database(&self) -> bool {
        match self.kind.as_str() {
            "DATABASE" | "DATABASE PROPERTIES" => true,
            "COMMENT" | "ACL" | "SECURITY LABEL" => self.tag.starts_with(b"DATABASE "),
            _ => false,
        }
    }
}

/// One field of an entry as it lies in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    HasData,
    Skipped,
    SkippedNumber,
    Tag,
    Kind,
    Definition,
    Schema,
    Owner,
}

/// Fields of one entry up to its dependencies, for versions 1.14 and 1.15.
pub(super) const FIELDS_1_14: &[Field] = &[
    Field::Id,
    Field::HasData,
    Field::Skipped, // table oid
    Field::Skipped, // oid
    Field::Tag,
    Field::Kind,
    Field::SkippedNumber, // section
    Field::Definition,
    Field::Skipped, // drop statement
    Field::Skipped, // copy statement
    Field::Schema,
    Field::Skipped, // tablespace
    Field::Skipped, // table access method
    Field::Owner,
    Field::Skipped, // with oids
];

/// The same for version 1.16, which adds the kind of relation.
pub(super) const FIELDS_1_16: &[Field] = &[
    Field::Id,
    Field::HasData,
    Field::Skipped,
    Field::Skipped,
    Field::Tag,
    Field::Kind,
    Field::SkippedNumber,
    Field::Definition,
    Field::Skipped,
    Field::Skipped,
    Field::Schema,
    Field::Skipped,
    Field::Skipped,
    Field::SkippedNumber, // relkind
    Field::Owner,
    Field::Skipped,
];

impl Field {
    pub(super) fn is_number(self) -> bool {
        matches!(self, Field::Id | Field::HasData | Field::SkippedNumber)
    }
}
