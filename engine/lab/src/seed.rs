//! The world before the migration: the hosts' folders, the shop's data, the zone. The same each time.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use runbook_core::Result;
use rusqlite::{Connection, params};

use crate::dns::Zone;
use crate::failed;
use crate::layout::{Layout, Plan, private_dir};
use crate::net::{Block, SHOP_PORT};
use crate::shop::SCHEMA;

pub(crate) const PRODUCTS: [(&str, &str, i64); 8] = [
    ("chair", "Oak chair", 12_900),
    ("desk", "Standing desk", 48_900),
    ("kettle", "Enamel kettle", 3_490),
    ("lamp", "Reading lamp", 5_990),
    ("mug", "Stoneware mug", 1_290),
    ("rug", "Wool rug", 21_900),
    ("shelf", "Wall shelf", 7_400),
    ("stool", "Three-legged stool, “Ærø”", 4_950),
];

/// How many orders the shop has at the beginning.
pub(crate) const ORDERS: u32 = 320;

/// 2024-03-01 08:00 UTC: when the shop's files were last changed.
const LONG_AGO: u64 = 1_709_280_000;

/// A repeatable stream of bytes that does not compress.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            out.extend_from_slice(&self.0.to_le_bytes());
        }
        out.truncate(n);
        out
    }
}

/// Fills the hosts' folders, which must be empty or absent.
pub(crate) fn hosts(layout: &Layout, plan: &Plan) -> Result<()> {
    for name in &plan.hosts {
        let root = layout.host(name);
        private_dir(&root)?;
        let fill = || -> std::io::Result<()> {
            systemctl(layout, plan, name, &root)?;
            if plan.edge_hosts.contains(name) {
                fs::create_dir_all(root.join("edge"))?;
                fs::write(root.join("edge/upstream"), format!("127.0.0.1:{SHOP_PORT}\n"))?;
            }
            if *name == plan.app_host {
                shop_files(&root)?;
            }
            Ok(())
        };
        fill().map_err(|e| failed(format!("host {name} cannot be set up in {}", root.display()), e))?;
        if *name == plan.app_host {
            database(&root.join("shop/shop.db")).map_err(|e| failed("the shop's database cannot be made", e))?;
        }
    }
    Ok(())
}

/// The host's `systemctl`: the lab's own executable, told which host asks.
pub(crate) fn systemctl(layout: &Layout, plan: &Plan, name: &str, root: &Path) -> std::io::Result<()> {
    let quote = |p: &Path| format!("'{}'", p.display().to_string().replace('\'', r"'\''"));
    let text = format!("#!/bin/sh\nexec {} __lab systemctl --dir {} --host {name} -- \"$@\"\n", quote(&plan.exe), quote(&layout.dir));
    let path = root.join("bin/systemctl");
    fs::create_dir_all(root.join("bin"))?;
    if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    // Renamed into place: a script that is being run must not change under its shell.
    let tmp = root.join("bin/.systemctl.new");
    fs::write(&tmp, text)?;
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o755))?;
    fs::rename(tmp, path)
}

fn shop_files(root: &Path) -> std::io::Result<()> {
    let uploads = root.join("shop/uploads");
    fs::create_dir_all(uploads.join("invoices/2024"))?;
    fs::write(
        root.join("shop/shop.conf"),
        format!("# the shop on the old server\nport = {SHOP_PORT}\ndatabase = \"shop/shop.db\"\nuploads = \"shop/uploads\"\n"),
    )?;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let put = |name: &str, data: &[u8], mode: u32| -> std::io::Result<()> {
        let path = uploads.join(name);
        fs::write(&path, data)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        let file = fs::File::options().write(true).open(&path)?;
        file.set_modified(UNIX_EPOCH + Duration::from_secs(LONG_AGO))
    };
    put("catalogue-2024.pdf", &noise.bytes(5 * 1024 * 1024 + 137), 0o644)?;
    for (sku, name, _) in PRODUCTS {
        let size = 20_000 + sku.len() * 7_919;
        put(&format!("{sku}.jpg"), &noise.bytes(size), 0o644)?;
        if sku == "stool" {
            put(&format!("{name}.txt"), name.as_bytes(), 0o644)?;
        }
    }
    put("empty.txt", b"", 0o600)?;
    for n in 1..=3 {
        let text = format!("Invoice {n:04}\n{}\n", "item ... 12,90\n".repeat(n * 10));
        put(&format!("invoices/2024/invoice-{n:04}.txt"), text.as_bytes(), 0o640)?;
    }
    symlink("catalogue-2024.pdf", uploads.join("catalogue.pdf"))
}

fn database(path: &Path) -> rusqlite::Result<()> {
    let mut c = Connection::open(path)?;
    c.pragma_update(None, "journal_mode", "WAL")?;
    let tx = c.transaction()?;
    tx.execute_batch(SCHEMA)?;
    for (sku, name, price) in PRODUCTS {
        tx.execute("INSERT INTO products VALUES (?, ?, ?, ?)", params![sku, name, price, format!("{sku}.jpg")])?;
    }
    for i in 0..ORDERS {
        let (sku, _, price) = PRODUCTS[i as usize % PRODUCTS.len()];
        let (id, quantity) = (format!("seed-{i:05}"), i64::from(i % 3) + 1);
        let at = jiff::Timestamp::try_from(SystemTime::UNIX_EPOCH + Duration::from_secs(LONG_AGO + u64::from(i) * 7_200));
        let at = at.map(|t| format!("{t:.3}")).unwrap_or_default();
        tx.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", params![id, sku, quantity, format!("customer {}", i % 41), at])?;
        let discount = (i % 5 == 0).then_some(f64::from(i) / 8.0);
        tx.execute("INSERT INTO payments (order_id, amount_cents, discount) VALUES (?, ?, ?)", params![id, price * quantity, discount])?;
    }
    let logo = Noise(42).bytes(3_000);
    tx.execute("INSERT INTO settings VALUES ('currency', 'EUR'), ('logo', ?), ('closed_on', NULL)", [logo])?;
    tx.commit()
}

/// The zone at the beginning: the public name leads to the host of the shop.
pub(crate) fn zone(layout: &Layout, plan: &Plan, block: &Block) -> Result<Zone> {
    let origin = plan.zone.trim_end_matches('.');
    let mut zone = Zone::empty(origin, block.dns, layout.zone())?;
    let ttl = u32::try_from(plan.ttl.as_secs()).unwrap_or(u32::MAX);
    for name in &plan.hosts {
        // A host name with an underscore is no host name in DNS; people reach it by its address.
        if !name.contains('_') && format!("{name}.{origin}") != plan.name.trim_end_matches('.') {
            zone.a(&format!("{name}.{origin}"), 60, block.host(name)?)?;
        }
    }
    zone.a(&plan.name, ttl, block.host(&plan.app_host)?)?;
    if plan.name.trim_end_matches('.') != format!("www.{origin}") && !plan.hosts.iter().any(|h| h == "www") {
        zone.cname(&format!("www.{origin}"), 60, &plan.name)?;
    }
    zone.txt(origin, 60, "v=spf1 -all")?;
    Ok(zone)
}
