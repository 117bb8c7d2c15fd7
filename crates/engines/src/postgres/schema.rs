//! A hash of all definitions in a database, the same before a dump and after its restore into another database.
//!
//! It covers schemas, tables with columns and partitions, types, constraints, indexes, views, rules, functions,
//! triggers, policies, sequences, event triggers and extended statistics; not owners, grants, comments, settings, nor
//! what belongs to an extension. Nothing in it depends on OIDs, on the name of the database or on the order of
//! creation. Other major versions may print the same definition differently: hashes are comparable within one.

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::connect::Session;
use crate::EngineError;

/// Objects of the user: neither the system's nor an extension's.
macro_rules! own {
    ($class:literal, $oid:literal) => {
        concat!(
            " n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT 1 FROM pg_depend x \
             WHERE x.classid = '",
            $class,
            "'::regclass AND x.objid = ",
            $oid,
            " AND x.deptype = 'e')"
        )
    };
}

/// How the text of a definition may differ though nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// It is the same byte by byte.
    Exact,
    /// It holds expressions, which come back from a restore with other casts and parentheses.
    Expressions,
}

/// One kind of object: a query for one text per object.
struct Kind {
    name: &'static str,
    text: Text,
    sql: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "schema",
        text: Text::Exact,
        sql: concat!("SELECT n.nspname::text FROM pg_namespace n WHERE", own!("pg_namespace", "n.oid")),
    },
    Kind {
        name: "relation",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, \
             c.relforcerowsecurity, c.relreplident, (SELECT amname FROM pg_am WHERE oid = c.relam), \
             (SELECT string_agg(o, ',' ORDER BY o COLLATE \"C\") FROM unnest(c.reloptions) o), \
             CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END, pg_get_expr(c.relpartbound, c.oid), \
             (SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno) FROM pg_inherits i \
              WHERE i.inhrelid = c.oid)) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S', 'c') AND",
            own!("pg_class", "c.oid")
        ),
    },
    Kind {
        name: "column",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), n.nspname, c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname, \
             format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, \
             CASE WHEN a.attcollation <> t.typcollation THEN (SELECT l.collname FROM pg_collation l WHERE l.oid = a.attcollation) END, \
             pg_get_expr(d.adbin, d.adrelid)) \
             FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_type t ON t.oid = a.atttypid \
             LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'c') AND",
            own!("pg_class", "c.oid")
        ),
    },
    Kind {
        // Constraints of a partition that its parent passed on are made anew, under names of the server's choice.
        name: "constraint",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), n.nspname, k.conname, CASE WHEN k.conrelid <> 0 THEN k.conrelid::regclass::text \
             ELSE format_type(k.contypid, NULL) END, pg_get_constraintdef(k.oid)) \
             FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace \
             WHERE k.conparentid = 0 AND k.contype IN ('c', 'f', 'p', 'u', 'x') AND",
            own!("pg_class", "k.conrelid"),
            " AND NOT EXISTS (SELECT 1 FROM pg_depend x WHERE x.classid = 'pg_type'::regclass \
             AND x.objid = k.contypid AND x.deptype = 'e')"
        ),
    },
    Kind {
        // pg_dump leaves invalid indexes out.
        name: "index",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), pg_get_indexdef(i.indexrelid), i.indisclustered, i.indisreplident) \
             FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (i.indisvalid OR c.relkind = 'p') AND",
            own!("pg_class", "i.indrelid")
        ),
    },
    Kind {
        name: "view",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), n.nspname, c.relname, pg_get_viewdef(c.oid)) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm') AND",
            own!("pg_class", "c.oid")
        ),
    },
    Kind {
        name: "rule",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), pg_get_ruledef(r.oid), r.ev_enabled) FROM pg_rewrite r \
             JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE r.rulename <> '_RETURN' AND",
            own!("pg_class", "c.oid")
        ),
    },
    Kind {
        name: "function",
        text: Text::Exact,
        sql: concat!(
            "SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
             WHERE p.prokind <> 'a' AND",
            own!("pg_proc", "p.oid")
        ),
    },
    Kind {
        name: "aggregate",
        text: Text::Exact,
        sql: concat!(
            "SELECT concat_ws(chr(31), n.nspname, p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), \
             a.aggtransfn::text, a.aggfinalfn::text, format_type(a.aggtranstype, NULL), a.agginitval) \
             FROM pg_aggregate a JOIN pg_proc p ON p.oid = a.aggfnoid \
             JOIN pg_namespace n ON n.oid = p.pronamespace WHERE",
            own!("pg_proc", "p.oid")
        ),
    },
    Kind {
        name: "trigger",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), pg_get_triggerdef(g.oid), g.tgenabled) FROM pg_trigger g \
             JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE NOT g.tgisinternal AND",
            own!("pg_class", "c.oid")
        ),
    },
    Kind {
        name: "type",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), n.nspname, t.typname, t.typtype, t.typnotnull, t.typdefault, \
             CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END, \
             (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_enum e \
              WHERE e.enumtypid = t.oid), \
             (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid)) \
             FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace \
             WHERE t.typtype IN ('d', 'e', 'r', 'm') AND",
            own!("pg_type", "t.oid")
        ),
    },
    Kind {
        name: "sequence",
        text: Text::Exact,
        sql: concat!(
            "SELECT concat_ws(chr(31), n.nspname, c.relname, format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, \
             s.seqmax, s.seqcache, s.seqcycle) \
             FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE",
            own!("pg_class", "c.oid")
        ),
    },
    Kind {
        name: "policy",
        text: Text::Expressions,
        sql: concat!(
            "SELECT concat_ws(chr(31), c.oid::regclass::text, p.polname, p.polcmd, p.polpermissive, \
             pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) \
             FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE",
            own!("pg_class", "c.oid")
        ),
    },
    Kind {
        name: "statistics",
        text: Text::Expressions,
        sql: concat!(
            "SELECT pg_get_statisticsobjdef(s.oid) FROM pg_statistic_ext s \
             JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE",
            own!("pg_statistic_ext", "s.oid")
        ),
    },
    Kind {
        name: "event trigger",
        text: Text::Exact,
        sql: "SELECT concat_ws(chr(31), evtname, evtevent, evtfoid::regprocedure::text, evtenabled, evttags::text) \
              FROM pg_event_trigger e WHERE NOT EXISTS (SELECT 1 FROM pg_depend x \
              WHERE x.classid = 'pg_event_trigger'::regclass AND x.objid = e.oid AND x.deptype = 'e')",
    },
];

/// Hashes the definitions in the session's database: SHA-256, in hex.
pub(crate) async fn hash(session: &Session, cancel: &CancellationToken) -> Result<String, EngineError> {
    let mut hash = Sha256::new();
    for kind in KINDS {
        let mut objects = session.texts(kind.sql, cancel).await?;
        if kind.text == Text::Expressions {
            for object in &mut objects {
                *object = normalized(object);
            }
        }
        objects.sort();
        framed(&mut hash, kind.name);
        for object in &objects {
            framed(&mut hash, object);
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// Lengths go in too, so that no two lists of texts run together into the same bytes.
fn framed(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

/// Casts that the server adds or moves when it reads its own output again, as in
/// `x IN ('a', 'b')` on a `varchar` column: first `(ARRAY['a'::character varying])::text[]`, later
/// `ARRAY[('a'::character varying)::text]`.
const MOVING_CASTS: [&str; 6] =
    ["::character varying[]", "::character varying", "::text[]", "::text", "::bpchar[]", "::bpchar"];

/// Leaves out, outside quotes, what a restore may change: parentheses, white space and the casts above.
fn normalized(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    let mut quote = None;
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        match quote {
            Some(open) => {
                result.push(c);
                if c == open {
                    quote = None;
                }
            }
            None if c == '\'' || c == '"' => {
                result.push(c);
                quote = Some(c);
            }
            None if c.is_whitespace() || c == '(' || c == ')' => {}
            None => match MOVING_CASTS.iter().find(|cast| rest.starts_with(**cast)) {
                Some(cast) => length = cast.len(),
                None => result.push(c),
            },
        }
        rest = &rest[length..];
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_cast_is_no_change() {
        let before =
            "CHECK (((c)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))";
        let after = "CHECK (((c)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))";
        assert_eq!(normalized(before), normalized(after));
        assert_eq!(normalized(before), "CHECKc=ANYARRAY['a','b']");
    }

    #[test]
    fn what_is_quoted_stays() {
        assert_eq!(normalized("'a (b)::text' || \"c d\""), "'a (b)::text'||\"c d\"");
        assert_ne!(normalized("x = 'a b'"), normalized("x = 'ab'"));
        assert_eq!(normalized("'it''s (so)'"), "'it''s (so)'");
    }
}
