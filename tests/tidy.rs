//! Rules about the repository that no compiler checks.

use std::path::Path;

/// docs/settings.md is printed from the table of settings. `RINGHORN_BLESS=1` writes it anew.
#[test]
fn settings_doc_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let wanted = ringhorn::config::settings::markdown();
    if std::env::var_os("RINGHORN_BLESS").is_some() {
        assert!(std::fs::write(&path, &wanted).is_ok(), "cannot write {}", path.display());
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/settings.md is not what src/config/settings.rs says; run `RINGHORN_BLESS=1 cargo test --test tidy`"
    );
}
