//! Users: who may log in, from where, with which password, and with which permissions. Hashing is `seal`'s;
//! verifying takes milliseconds on purpose, so callers do it off the reactor.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use crate::broker::id::RowId;
use crate::seal::password;
use crate::session::port::{Login, LoginRefused, Mechanism};
use crate::store::{RowKind, Store};

use super::engine_core::EngineError;
use super::rights::{Permissions, Permit, Rights};
use super::rows::UserRow;

/// One user.
#[derive(Clone)]
pub struct User {
    pub(super) row: RowId,
    /// Argon2id, PHC string
    pub(super) password_hash: String,
    /// `administrator` and others
    pub tags: Vec<String>,
    /// in which virtual host what; `None` is a row from before permissions were kept
    pub(super) grants: Option<Vec<Grant>>,
}

/// A user's permissions in one virtual host.
#[derive(Clone)]
pub(super) struct Grant {
    pub vhost: String,
    pub permissions: Permissions,
    pub rights: Arc<Rights>,
}

impl Grant {
    pub fn new(vhost: String, permissions: Permissions) -> Result<Grant, String> {
        let rights = Arc::new(Rights::compile(&permissions)?);
        Ok(Grant { vhost, permissions, rights })
    }
}

impl User {
    /// Its rights in that virtual host, if it may enter.
    fn rights(&self, vhost: &str) -> Option<Arc<Rights>> {
        let Some(grants) = &self.grants else {
            // Everybody could do everything then; only who administrates keeps that.
            let is_administrator = self.tags.iter().any(|tag| tag == "administrator");
            let all = is_administrator.then(|| Rights::compile(&Permissions::all()).ok());
            return all.flatten().map(Arc::new);
        };
        grants.iter().find(|grant| grant.vhost == vhost).map(|grant| grant.rights.clone())
    }

    fn may_impersonate(&self) -> bool {
        self.tags.iter().any(|tag| tag == "impersonator")
    }
}

/// A user as somebody wants it to be.
pub struct UserSpec<'a> {
    /// the name
    pub name: &'a str,
    /// the password in clear
    pub password: &'a [u8],
    /// `administrator` and others
    pub tags: &'a [String],
    /// in the engine's virtual host; `None` is no access to it
    pub permissions: Option<&'a Permissions>,
}

/// All users. Reads are frequent (each login), changes rare.
pub struct Users {
    users: RwLock<HashMap<String, User>>,
    /// counts changes, so that connections know when to look at their rights again
    version: AtomicU64,
    /// who may only come from this machine
    loopback_only: RwLock<HashSet<String>>,
    /// digests of logins that were right, so that a client that opens many connections pays for
    /// Argon2id once; keyed by random bytes of this process, emptied whenever a user changes
    proven: Mutex<HashSet<[u8; 32]>>,
    proof: password::Proof,
    gate: Gate,
}

/// Argon2id takes 19 MiB for each login that is checked; thousands that come at once wait for their turn.
struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    fn for_this_machine() -> Gate {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Gate { free: Mutex::new(cores), freed: Condvar::new() }
    }

    fn pass<T>(&self, work: impl FnOnce() -> T) -> T {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |n| *n == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        drop(free);
        let place = Place(self);
        let done = work();
        drop(place);
        done
    }
}

/// Given back even if the work panics.
struct Place<'a>(&'a Gate);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

fn are_same(grants: &[Grant], wanted: Option<&Grant>) -> bool {
    let same = |a: &Grant, b: &Grant| a.vhost == b.vhost && a.permissions == b.permissions;
    match (grants, wanted) {
        ([], None) => true,
        ([grant], Some(wanted)) => same(grant, wanted),
        (_, _) => false,
    }
}

/// Right logins remembered at once; past that the memory is emptied.
const PROVEN_MAX: usize = 1024;

impl Users {
    pub(super) fn new(users: HashMap<String, User>) -> Result<Users, EngineError> {
        Ok(Users {
            users: RwLock::new(users),
            version: AtomicU64::new(0),
            loopback_only: RwLock::default(),
            proven: Mutex::default(),
            proof: password::Proof::new().map_err(|e| EngineError::Random(e.to_string()))?,
            gate: Gate::for_this_machine(),
        })
    }

    /// Replaces the list of users who may only log in from this machine (`loopback_users`).
    pub fn set_loopback_only(&self, names: impl IntoIterator<Item = String>) {
        *self.loopback_only.write().unwrap_or_else(PoisonError::into_inner) = names.into_iter().collect();
    }

    /// Checks a login; takes milliseconds, so not on the reactor. The refusal's reason is logged, and
    /// never told to the client.
    pub fn check(&self, login: &Login) -> Result<(), LoginRefused> {
        let Ok(name) = std::str::from_utf8(&login.user) else { return Err(LoginRefused) };
        let mechanism = login.mechanism.name();
        let known = self.users.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let is_right = match (&known, &login.password, login.mechanism) {
            (Some(_), None, Mechanism::External) => true,
            (Some(user), Some(password), Mechanism::Plain | Mechanism::AmqPlain) => {
                self.verify(user, name, password)
            }
            (None, Some(password), _) => {
                // As slow as a wrong password, so that time does not tell which users exist.
                self.gate.pass(|| password::verify_nobody(password));
                false
            }
            (_, _, _) => false,
        };
        if !is_right {
            tracing::warn!(mechanism, user = name, "login refused: invalid credentials");
            return Err(LoginRefused);
        }
        let local_only = self.loopback_only.read().unwrap_or_else(PoisonError::into_inner);
        if !login.is_loopback && local_only.contains(name) {
            tracing::warn!(mechanism, user = name, "login refused: user can only connect via localhost");
            return Err(LoginRefused);
        }
        Ok(())
    }

    fn verify(&self, user: &User, name: &str, password: &[u8]) -> bool {
        let digest = self.proof.digest(&[name.as_bytes(), user.password_hash.as_bytes(), password]);
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.contains(&digest) {
            return true;
        }
        drop(proven);
        let is_right = self.gate.pass(|| password::verify(&user.password_hash, password));
        if is_right {
            proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
            if proven.len() >= PROVEN_MAX {
                proven.clear();
            }
            proven.insert(digest);
        }
        is_right
    }

    pub(super) fn ensure(&self, store: &Store, vhost: &str, spec: &UserSpec<'_>) -> Result<(), EngineError> {
        let UserSpec { name, password, tags, permissions } = *spec;
        let failed = |reason: String| EngineError::User { user: name.to_owned(), reason };
        let grant =
            permissions.map(|p| Grant::new(vhost.to_owned(), p.clone())).transpose().map_err(failed)?;
        let known = self.users.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let verified = known.as_ref().filter(|user| password::verify(&user.password_hash, password));
        if let Some(user) = verified
            && user.tags == tags
            && user.grants.as_ref().is_some_and(|grants| are_same(grants, grant.as_ref()))
        {
            return Ok(());
        }
        let password_hash = match verified {
            Some(user) => user.password_hash.clone(),
            None => password::hash(password).map_err(|e| failed(e.to_string()))?,
        };
        let row = known.map_or_else(|| store.next_row_id(), |user| user.row);
        let grants = Some(grant.into_iter().collect());
        let user = User { row, password_hash, tags: tags.to_vec(), grants };
        store.appender().put_row(RowKind::User, row, UserRow::of(name, &user).encode());
        self.users.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), user);
        self.version.fetch_add(1, Ordering::Release);
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// Changes with every change of a user.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What that user may do in the virtual host; `None` when it may not enter.
    pub(super) fn permit(&self, name: &str, vhost: &str) -> Option<Permit> {
        // Before the look: a change that comes in between is seen by the next comparison.
        let version = self.version();
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        let rights = users.get(name)?.rights(vhost)?;
        Some(Permit::new(name.to_owned(), rights, version))
    }

    /// Whether that user may publish in the name of others (the tag `impersonator`).
    pub(super) fn may_impersonate(&self, name: &str) -> bool {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        users.get(name).is_some_and(User::may_impersonate)
    }

    /// Names and tags, sorted, for lists.
    pub fn list(&self) -> Vec<(String, Vec<String>)> {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = users.iter().map(|(name, user)| (name.clone(), user.tags.clone())).collect();
        list.sort();
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_passwords_are_hashed_at_once_than_there_are_cores() {
        let gate = Gate { free: Mutex::new(2), freed: Condvar::new() };
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    gate.pass(|| {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        (0..100).for_each(|_| std::thread::yield_now());
                        now.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
        assert_eq!(*gate.free.lock().unwrap(), 2);
    }
}
