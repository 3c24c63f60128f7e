//! Every path, in one screen.

use actix_web::web::{ServiceConfig, get, head, post, resource};

use super::{account, catalogue, pages, runs};

/// The API's.
pub(super) fn api(config: &mut ServiceConfig) {
    config
        .service(resource("/v1/runs").route(get().to(runs::list)).route(post().to(runs::submit)))
        .service(resource("/v1/runs/{run_id}").route(get().to(runs::get)))
        .service(resource("/v1/runs/{run_id}/result").route(get().to(runs::result)))
        .service(resource("/v1/packs").route(get().to(catalogue::packs)))
        .service(resource("/v1/packs/{pack_type}").route(get().to(catalogue::pack)))
        .service(resource("/v1/ledger").route(get().to(account::ledger)))
        .service(resource("/v1/usage").route(get().to(account::usage)))
        .service(resource("/v1/budget").route(get().to(account::budget)))
        .service(resource("/errors/{slug}").route(get().to(pages::error)))
        .service(resource("/health").route(get().to(pages::health)).route(head().to(pages::health)))
        .service(resource("/readyz").route(get().to(pages::readyz)).route(head().to(pages::readyz)));
}

/// Those of a process's own port.
pub(super) fn ops(config: &mut ServiceConfig) {
    config
        .service(resource("/metrics").route(get().to(pages::metrics)))
        .service(resource("/health").route(get().to(pages::health)).route(head().to(pages::health)))
        .service(resource("/readyz").route(get().to(pages::readyz)).route(head().to(pages::readyz)));
}
