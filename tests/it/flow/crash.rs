//! Every crash point, once: the flow dies there, the app starts anew, the reaper passes until nothing
//! changes, and the promises hold.

use chrono::TimeDelta;
use dpp::flow::crash::{CrashPoint, Death};

use crate::harness::{TestApp, decision};

/// A whole life of a run, from submit to retention, with a lost attempt in it, and a deposit: every
/// crash point lies on its way.
async fn live(app: &TestApp, tenant: &crate::harness::Tenant) {
    // Whatever dies, the client tries again until it has an answer.
    for _ in 0..5 {
        if app.post(tenant, "one", &decision("1")).await.status == 202 {
            break;
        }
    }
    app.work().await;
    // A worker that took the run and died.
    app.move_clock(TimeDelta::seconds(10));
    for pass in dpp::reaper::Pass::ALL {
        // A pass that is made to die is like a reaper that died.
        drop(pass.once(&app.cx).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_the_books_balance_and_every_run_ends() {
    for point in CrashPoint::ALL {
        let app = TestApp::with(&[("MAX_ATTEMPTS", "1"), ("QUEUE_TTL_SEC", "3600")]).await;
        let tenant = app.tenant("2").await;
        match point {
            // These lie on the reaper's way: something must be due first.
            CrashPoint::ExpireAfterCommit => {
                app.submit(&tenant, "stuck", "1").await;
                let messages = app
                    .cx
                    .queue
                    .receive(1, std::time::Duration::from_secs(3), std::time::Duration::ZERO)
                    .await;
                drop(dpp::flow::take::take(&app.cx, messages.unwrap()).await.unwrap());
            }
            CrashPoint::RetainAfterPurge => {
                app.submit(&tenant, "old", "1").await;
                app.work().await;
                app.move_clock(TimeDelta::days(91));
            }
            CrashPoint::DepositAfterCommit => {
                app.cx.crash.arm(point, Death::Flow);
                let amount = "1".parse().unwrap();
                assert!(dpp::flow::deposit::deposit(&app.cx, tenant.id, amount, "more").await.is_err());
            }
            CrashPoint::RebuildAfterRaise | CrashPoint::RebuildAfterSet => {
                let _: String = app.place.redis(&["FLUSHDB"]).await;
            }
            _ => {}
        }
        if point != CrashPoint::DepositAfterCommit {
            app.cx.crash.arm(point, Death::Flow);
        }
        live(&app, &tenant).await;
        assert!(app.cx.crash.fired(), "{point:?} lies on no way");

        let app = app.restart();
        app.move_clock(TimeDelta::days(1));
        app.finish().await;
    }
}
