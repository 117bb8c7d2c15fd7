//! The database of a small shop: the same rows every time, and a writer that takes orders.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, params};
use tokio_util::sync::CancellationToken;

/// Rows of the shop before anybody orders anything more.
const CUSTOMERS: i64 = 20_000;
const PRODUCTS: i64 = 2_000;
/// What the demo promises.
pub(super) const ORDERS: i64 = 100_000;

/// When the shop opened, in seconds since 1970.
const OPENED_AT: i64 = 1_760_000_000;

/// How long the writer rests between two orders.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a connection waits for another one's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    create table customers (id integer primary key, name text not null, email text not null unique, city text not null);
    create table products (id integer primary key, name text not null, price_cents integer not null, stock integer not null);
    create table orders (id integer primary key, customer_id integer not null references customers, status text not null,
                         placed_at integer not null);
    create index orders_by_time on orders (placed_at);
    create table order_items (order_id integer not null references orders, product_id integer not null references products,
                              quantity integer not null, price_cents integer not null,
                              primary key (order_id, product_id)) without rowid;
    create table payments (id integer primary key, order_id integer not null references orders, amount_cents integer not null,
                           method text not null, reference text not null);
";

/// Numbers that look random and are the same every time (the generator of Steele, Lea and Flood, splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below `limit`; SQLite's integers are signed.
    fn below(&mut self, limit: i64) -> i64 {
        (self.roll() >> 1).cast_signed() % limit
    }

    fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        words[(self.roll() >> 1) as usize % words.len()]
    }
}

const FIRST: [&str; 12] =
    ["Ada", "Bela", "Chen", "Dario", "Emeka", "Freya", "Goran", "Hana", "Ines", "Jonas", "Kavya", "Lin"];
const LAST: [&str; 12] = [
    "Abara", "Berg", "Costa", "Dvorak", "Eriksen", "Fischer", "Gupta", "Hoang", "Ivanova", "Jansen", "Kim",
    "Lopez",
];
const CITY: [&str; 8] = ["Bergen", "Chennai", "Dakar", "Hanoi", "Lima", "Porto", "Suzhou", "Tallinn"];
const THING: [&str; 10] =
    ["kettle", "lamp", "notebook", "backpack", "teapot", "blanket", "compass", "chair", "speaker", "bicycle"];
const COLOUR: [&str; 8] = ["amber", "blue", "cream", "green", "grey", "olive", "red", "white"];
const STATUS: [&str; 4] = ["placed", "paid", "shipped", "delivered"];
const METHOD: [&str; 3] = ["card", "transfer", "wallet"];

/// Opens a database for reading and writing.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // As in every other client of SQLite unless it asks for them; the library that is linked here differs.
    connection.pragma_update(None, "foreign_keys", false)?;
    Ok(connection)
}

/// Makes the shop.
pub(super) fn build(path: &Path) -> rusqlite::Result<()> {
    let mut connection = open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // Only while it is made: a demo that dies here is started again.
    connection.pragma_update(None, "synchronous", "off")?;
    connection.execute_batch(SCHEMA)?;
    let mut dice = Dice(20_261_121);
    let transaction = connection.transaction()?;
    {
        let mut customer = transaction.prepare("insert into customers values (?1, ?2, ?3, ?4)")?;
        for id in 1..=CUSTOMERS {
            let (first, last) = (dice.one_of(&FIRST), dice.one_of(&LAST));
            let email = format!("{}.{}.{id}@example.net", first.to_lowercase(), last.to_lowercase());
            customer.execute(params![id, format!("{first} {last}"), email, dice.one_of(&CITY)])?;
        }
        let mut product = transaction.prepare("insert into products values (?1, ?2, ?3, ?4)")?;
        for id in 1..=PRODUCTS {
            let name = format!("{} {} no. {id}", dice.one_of(&COLOUR), dice.one_of(&THING));
            product.execute(params![id, name, 199 + dice.below(40_000), dice.below(500)])?;
        }
    }
    for _ in 0..ORDERS {
        place_order(&transaction, &mut dice)?;
    }
    transaction.commit()?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.execute_batch("pragma wal_checkpoint(truncate)")
}

/// One order with its items and its payment.
fn place_order(transaction: &Transaction<'_>, dice: &mut Dice) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "insert into orders (customer_id, status, placed_at)
             select ?1, ?2, coalesce(max(placed_at), ?3) + ?4 from orders",
        )?
        .execute(params![1 + dice.below(CUSTOMERS), dice.one_of(&STATUS), OPENED_AT, dice.below(600)])?;
    let order = transaction.last_insert_rowid();
    let mut total = 0;
    for _ in 0..=dice.below(3) {
        let (quantity, price) = (1 + dice.below(3), 199 + dice.below(40_000));
        total += quantity * price;
        transaction
            .prepare_cached("insert or ignore into order_items values (?1, ?2, ?3, ?4)")?
            .execute(params![order, 1 + dice.below(PRODUCTS), quantity, price])?;
    }
    transaction
        .prepare_cached(
            "insert into payments (order_id, amount_cents, method, reference) values (?1, ?2, ?3, ?4)",
        )?
        .execute(params![order, total, dice.one_of(&METHOD), format!("{:016x}", dice.roll())])?;
    Ok(())
}

/// A busy afternoon: orders come in, prices change.
pub(super) fn change(path: &Path, orders: i64) -> rusqlite::Result<()> {
    let mut connection = open(path)?;
    let mut dice = Dice(7);
    let transaction = connection.transaction()?;
    for _ in 0..orders {
        place_order(&transaction, &mut dice)?;
    }
    transaction
        .execute("update products set price_cents = price_cents + 100 where id between 301 and 500", [])?;
    transaction.commit()
}

/// The accident.
pub(super) fn delete_orders(path: &Path) -> rusqlite::Result<usize> {
    open(path)?.execute("DELETE FROM orders", [])
}

/// Takes orders until it is told to stop. Returns how many it took.
pub(super) fn keep_ordering(path: &Path, stop: &CancellationToken) -> rusqlite::Result<u64> {
    let mut connection = open(path)?;
    let mut dice = Dice(1);
    let mut taken = 0;
    while !stop.is_cancelled() {
        let transaction = connection.transaction()?;
        place_order(&transaction, &mut dice)?;
        transaction.commit()?;
        taken += 1;
        std::thread::sleep(PAUSE);
    }
    Ok(taken)
}

/// What is in a database, counted by opening it: rows per table, and whether SQLite finds it intact.
pub(super) fn count(path: &Path) -> rusqlite::Result<Counted> {
    // A reader alone would leave its `-shm` and `-wal` files behind.
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let names: Vec<String> = connection
        .prepare(
            "select name from sqlite_master where type = 'table' and name not like 'sqlite_%' order by name",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut rows = BTreeMap::new();
    for name in names {
        let quoted = name.replace('"', "\"\"");
        let count: i64 =
            connection.query_row(&format!("select count(*) from \"{quoted}\""), [], |row| row.get(0))?;
        rows.insert(name, count.unsigned_abs());
    }
    let integrity: String = connection.query_row("pragma integrity_check", [], |row| row.get(0))?;
    Ok(Counted { rows, intact: integrity == "ok" })
}

/// Rows per table, and whether the file is intact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    /// By table.
    pub(super) rows: BTreeMap<String, u64>,
    /// What `pragma integrity_check` says.
    pub(super) intact: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shop_is_the_same_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let counts: Vec<Counted> = ["one.db", "two.db"]
            .iter()
            .map(|name| {
                let path = folder.path().join(name);
                build(&path).unwrap();
                count(&path).unwrap()
            })
            .collect();
        assert_eq!(counts[0], counts[1]);
        assert!(counts[0].intact);
        assert_eq!(counts[0].rows["orders"], ORDERS.unsigned_abs());
        assert_eq!(counts[0].rows["payments"], ORDERS.unsigned_abs());
        assert_eq!(counts[0].rows.len(), 5);
    }

    #[test]
    fn the_accident_takes_orders_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.db");
        build(&path).unwrap();
        change(&path, 10).unwrap();
        assert_eq!(delete_orders(&path).unwrap() as i64, ORDERS + 10);
        let left = count(&path).unwrap();
        assert_eq!((left.rows["orders"], left.rows["payments"]), (0, ORDERS.unsigned_abs() + 10));
    }
}
