//! Whatever a host says, in whatever pieces, cut wherever: no panic, nothing lost or doubled, never a false end.

use std::sync::Arc;

use proptest::prelude::*;
use runbook_core::inventory::Environment;

use super::*;

const M: &str = "rbmark";

fn follow() -> (Follow, Arc<runbook_testkit::World>) {
    let world = Arc::new(runbook_testkit::World::default());
    (Follow::new(&runbook_testkit::cx(&world, Environment::default(), "a"), false, false), world)
}

fn ended(status: i32) -> Report {
    Report::Ended { status, raised: false, why: None }
}

/// Output that looks like the supervisor's lines, and other bytes.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(b"rbmark end 0 - -\n".to_vec()),
        Just(b"rbmark ok\n".to_vec()),
        Just(b"rbmark gone process\n".to_vec()),
        Just(b"rbmark absent\n".to_vec()),
        Just(b"rbmark".to_vec()),
        Just(b"rbmark \n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"rbrbmark end".to_vec()),
        Just([b"rbmark ".as_slice(), &[b'y'; 300]].concat()),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|p| p.concat())
}

/// Feeds both streams in pieces of these sizes, in this order; stops after `limit` bytes.
fn feed(f: &mut Follow, out: &[u8], err: &[u8], pieces: &[(bool, usize)], limit: usize) {
    let (mut out, mut err, mut left) = (out, err, limit);
    let rest = [(false, usize::MAX), (true, usize::MAX)];
    for (is_err, n) in pieces.iter().chain(&rest) {
        let from = if *is_err { &mut err } else { &mut out };
        let n = (*n).min(from.len()).min(left);
        let (piece, later) = from.split_at(n);
        f.push(if *is_err { StreamKind::Stderr } else { StreamKind::Stdout }, piece);
        *from = later;
        left -= n;
    }
}

fn pieces() -> impl Strategy<Value = Vec<(bool, usize)>> {
    proptest::collection::vec((any::<bool>(), 0usize..24), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("RUNBOOK_TEST_ALL").is_some() { 20_000 } else { 400 }))]

    #[test]
    fn anything_at_all_is_read_without_a_panic(out in proptest::collection::vec(any::<u8>(), 0..400), err in output(), head in output(), pieces in pieces(), status in proptest::option::of(-1i32..300)) {
        let (mut f, _w) = follow();
        f.expect(M);
        feed(&mut f, &[head, out].concat(), &err, &pieces, usize::MAX);
        let report = f.report(status.map_or(End::Lost, End::Status));
        let is_end = matches!(report, Report::Ended { .. } | Report::Gone(_));
        prop_assert!(!is_end || status == Some(0), "an end without the supervisor's own status: {:?}", report);
        let _ = f.offsets();
        f.finish();
    }

    /// A session cut anywhere, then a second one that goes on from the offsets: the output is whole, once, and the end is told once.
    #[test]
    fn a_cut_loses_and_doubles_nothing(
        noise in "[a-z \n]{0,20}", out in output(), err in output(), code in 0i32..256,
        first in pieces(), second in pieces(), cut in 0usize..900, end in prop_oneof![Just(End::Lost), Just(End::Status(255)), Just(End::Status(0))],
    ) {
        let (mut f, _w) = follow();
        f.expect(M);
        let all_out = [noise.as_bytes(), b"rbmark ok\n", &out, b"rbmark end\n"].concat();
        let all_err = [noise.as_bytes(), b"rbmark ok\n", &err, b"rbmark end ", code.to_string().as_bytes(), b" - -\n"].concat();
        let cut_off = cut < all_out.len() + all_err.len();
        feed(&mut f, &all_out, &all_err, &first, cut);
        // A session that was cut ends with no status, or with that of a supervisor that could not write.
        let end = if cut_off && end == End::Status(0) { End::Lost } else { end };
        let report = f.report(end);
        if cut_off || end != End::Status(0) {
            prop_assert!(!matches!(report, Report::Ended { .. } | Report::Gone(_)), "a false end: {:?}", report);
            let (o, e) = f.offsets();
            let (o, e) = (usize::try_from(o).unwrap(), usize::try_from(e).unwrap());
            prop_assert!(o <= out.len() && e <= err.len());
            f.expect("rbother");
            let all_out = [b"rbother ok -\n", &out[o..], b"rbother end\n"].concat();
            let all_err = [b"rbother ok\n", &err[e..], b"rbother end ", code.to_string().as_bytes(), b" - -\n"].concat();
            feed(&mut f, &all_out, &all_err, &second, usize::MAX);
            prop_assert_eq!(f.report(End::Status(0)), ended(code));
        } else {
            prop_assert_eq!(report, ended(code));
        }
        let (got_out, got_err, _) = f.finish();
        prop_assert_eq!((got_out, got_err), (out, err));
    }
}

#[test]
fn in_a_session_that_goes_on_the_last_lines_tell_the_end() {
    let (mut f, _w) = follow();
    f.expect(M);
    assert!(!f.open() && !f.has_end());
    f.push(StreamKind::Stdout, b"rbmark ok\nout without an end of linerbmark end\n");
    f.push(StreamKind::Stderr, b"rbmark ok\nrbmark end 3 - -");
    assert!(f.open() && !f.has_end(), "a line cut short is no line");
    f.push(StreamKind::Stderr, b"\n");
    assert!(f.has_end());
    assert_eq!(f.report(End::Status(0)), ended(3));
    let (out, err, _) = f.finish();
    assert_eq!((out.as_slice(), err.as_slice()), (b"out without an end of line".as_slice(), b"".as_slice()));
}

#[test]
fn what_the_host_says_without_the_supervisor_is_kept_for_the_message() {
    let (mut f, _w) = follow();
    f.expect(M);
    f.push(StreamKind::Stdout, b"This account is currently not available.\n");
    assert_eq!(f.report(End::Status(1)), Report::Mute(1, b"This account is currently not available.\n".to_vec()));
    assert_eq!(f.report(End::Lost), Report::Lost);
}

#[tokio::test]
async fn the_hosts_word_on_the_time_left_counts() {
    let (mut f, _w) = follow();
    f.due_in(Duration::from_secs(600));
    let mut due = f.deadline();
    let waiting = tokio::time::timeout(Duration::from_secs(60), async move { due.wait().await });
    f.expect(M);
    let (r, ()) = tokio::join!(waiting, async { f.push(StreamKind::Stdout, b"rbmark ok 0\n") });
    r.expect("the host says that no time is left");
}
