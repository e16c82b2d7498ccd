//! A controller that dies anywhere.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_loses_no_order() {
    for round in 0..4u64 {
        let Some(s) = Site::new() else { return };
        let n = std::cell::Cell::new(0u64);
        let cut = || {
            n.set(n.get() + 1);
            Some(Duration::from_millis(30 + (round * 97 + n.get() * 41) % 420))
        };
        cutover(&s, true, &cut).await;
    }
}
