//! Every path, in one screen. What each takes and answers is in [`super::operations`].

use actix_web::{
    FromRequest, Handler, Resource, Responder,
    web::{ServiceConfig, delete, get, head, post, put, resource},
};

use super::{account, admin, catalogue, docs, keys, pages, runs};

/// The API's.
pub(super) fn api(config: &mut ServiceConfig) {
    config
        .service(read("/v1/runs", runs::list).route(post().to(runs::submit)))
        .service(read("/v1/runs/{run_id}", runs::get))
        .service(read("/v1/runs/{run_id}/result", runs::result))
        .service(resource("/v1/runs/{run_id}/cancel").route(post().to(runs::cancel)))
        .service(read("/v1/packs", catalogue::packs))
        .service(read("/v1/packs/{pack_type}", catalogue::pack))
        .service(read("/v1/budget", account::budget))
        .service(read("/v1/usage", account::usage))
        .service(read("/v1/ledger", account::ledger))
        .service(read("/v1/keys", keys::list).route(post().to(keys::create)))
        .service(resource("/v1/keys/{key_id}").route(delete().to(keys::revoke)))
        .service(resource("/v1/keys/{key_id}/rotate").route(post().to(keys::rotate)))
        .service(read("/errors", pages::errors))
        .service(read("/errors/{slug}", pages::error))
        .service(read("/openapi.json", docs::openapi))
        .service(read("/docs", docs::docs))
        .service(read("/redoc", docs::redoc))
        .service(read("/assets/{asset}", docs::asset))
        .service(read("/llms.txt", pages::llms))
        .service(read("/health", pages::health))
        .service(read("/readyz", pages::readyz));
}

/// Those of a process's own port.
pub(super) fn ops(config: &mut ServiceConfig) {
    config
        .service(read("/metrics", pages::metrics))
        .service(read("/health", pages::health))
        .service(read("/readyz", pages::readyz));
}

/// The admin API's, which are there where there is a token for them.
pub(super) fn admin(config: &mut ServiceConfig) {
    config
        .service(read("/v1/admin/tenants", admin::tenants).route(post().to(admin::create_tenant)))
        .service(read("/v1/admin/tenants/{tenant_id}", admin::tenant))
        .service(resource("/v1/admin/tenants/{tenant_id}/suspend").route(post().to(admin::suspend)))
        .service(resource("/v1/admin/tenants/{tenant_id}/resume").route(post().to(admin::resume)))
        .service(resource("/v1/admin/tenants/{tenant_id}/plan").route(put().to(admin::assign_plan)))
        .service(resource("/v1/admin/tenants/{tenant_id}/deposits").route(post().to(admin::deposit)))
        .service(read("/v1/admin/tenants/{tenant_id}/keys", admin::keys).route(post().to(admin::create_key)))
        .service(resource("/v1/admin/keys/{key_id}").route(delete().to(admin::revoke_key)))
        .service(resource("/v1/admin/keys/{key_id}/rotate").route(post().to(admin::rotate_key)))
        .service(read("/v1/admin/plans", admin::plans))
        .service(read("/v1/admin/plans/{plan}", admin::plan).route(put().to(admin::put_plan)));
}

/// A path that can be read: what GET answers, HEAD answers without the body. OPTIONS is answered for all
/// paths in [`super::context`].
fn read<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    F::Output: Responder + 'static,
    Args: FromRequest + 'static,
{
    resource(path).route(get().to(handler.clone())).route(head().to(handler))
}
