/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What Rust cannot call or read by itself: inline functions, macros, constants
 * with casts, and sequences of C calls that belong together. The prototypes
 * are turned into src/sys/generated.rs by bindgen; the compiler checks them
 * against helpers.c, so no signature is written twice.
 */
#ifndef MARS_HELPERS_H
#define MARS_HELPERS_H

/* --- includes of the block half --- */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/types.h>
/* --- includes of the other half --- */
#include <crypto/md5.h>
#include <crypto/sha2.h>
#include <linux/crc32.h>
#include <linux/fs.h>
#include <linux/net.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/wait.h>

/* --- block: memory --- */

void *mars_c_buf_alloc(size_t len, bool zero, bool wait, bool *reserved);
void mars_c_buf_free(void *addr, size_t len, bool reserved);
unsigned int mars_c_reserves_save(void);
void mars_c_reserves_restore(unsigned int flags);
size_t mars_c_buf_bytes(void);
bool mars_c_in_reclaim(void);
bool mars_c_reclaims(void);
unsigned int mars_c_noio_save(void);
void mars_c_noio_restore(unsigned int flags);

/* --- block: bio --- */

/* Longer bios are split before they reach ->submit. */
#define MARS_C_MAX_BIO_BYTES SZ_1M

#ifdef __BINDGEN__
static const gfp_t MARS_C_GFP_NOIO = GFP_NOIO;
static const u32 MARS_C_CRC32C_OPTIMIZATION = CRC32C_OPTIMIZATION;
static const blk_opf_t MARS_C_REQ_SYNC = REQ_SYNC;
static const blk_opf_t MARS_C_REQ_FUA = REQ_FUA;
static const blk_opf_t MARS_C_REQ_SWAP = REQ_SWAP;
static const blk_opf_t MARS_C_REQ_PREFLUSH = REQ_PREFLUSH;
static const blk_opf_t MARS_C_REQ_NOUNMAP = REQ_NOUNMAP;
static const u32 MARS_C_MAX_BIO = MARS_C_MAX_BIO_BYTES;
#endif

int mars_c_block_init(void);
void mars_c_block_exit(void);
bool mars_c_may_wait_for_io(void);

void mars_c_bio_start(struct bio *bio);
void mars_c_bio_end_acct(struct bio *bio);
void mars_c_bio_read(struct bio *bio, unsigned int off, void *to, unsigned int len);
void mars_c_bio_write(struct bio *bio, unsigned int off, const void *from, unsigned int len);
void mars_c_bio_zero(struct bio *bio, unsigned int off, unsigned int len);
void mars_c_bio_remap(struct bio *bio, struct block_device *bdev);
int mars_c_bio_read_through(struct bio *bio, struct block_device *bdev);
struct bio *mars_c_bio_new(struct block_device *bdev, unsigned int nr_vecs, blk_opf_t opf, u64 sector);
unsigned int mars_c_bio_add(struct bio *bio, void *addr, unsigned int len);
unsigned int mars_c_bio_add_zeros(struct bio *bio, unsigned int len);
unsigned int mars_c_bio_vecs(void *addr, unsigned int len);

/* --- block: block device --- */

struct file *mars_c_bdev_open(const char *path, void *holder);
void mars_c_bdev_close(struct file *file);
u64 mars_c_bdev_size(struct block_device *bdev);
unsigned int mars_c_bdev_logical_block_size(struct block_device *bdev);
unsigned int mars_c_bdev_physical_block_size(struct block_device *bdev);
unsigned int mars_c_bdev_io_min(struct block_device *bdev);
unsigned int mars_c_bdev_io_opt(struct block_device *bdev);
unsigned int mars_c_bdev_dma_alignment(struct block_device *bdev);
unsigned int mars_c_bdev_max_discard_sectors(struct block_device *bdev);
unsigned int mars_c_bdev_discard_granularity(struct block_device *bdev);
unsigned int mars_c_bdev_max_write_zeroes_sectors(struct block_device *bdev);
bool mars_c_bdev_write_cache(struct block_device *bdev);
bool mars_c_bdev_rotational(struct block_device *bdev);
int mars_c_bdev_rw(struct block_device *bdev, bool write, bool fua, void *addr, size_t len, u64 sector);

/* --- block: disk --- */

struct gendisk *mars_c_disk_alloc(const struct block_device_operations *fops, void *private_data,
				  unsigned int logical_block_size, unsigned int physical_block_size,
				  unsigned int io_min, unsigned int io_opt,
				  unsigned int dma_alignment, bool write_cache, bool rotational,
				  unsigned int max_zeroes_sectors, unsigned int discard_granularity);
int mars_c_disk_add(struct gendisk *disk, const char *name, u64 sectors);
void mars_c_disk_del(struct gendisk *disk);
void mars_c_disk_released(void);
unsigned int mars_c_disk_openers(struct gendisk *disk);
void mars_c_disk_lock(struct gendisk *disk);
void mars_c_disk_unlock(struct gendisk *disk);
int mars_c_disk_holder(struct gendisk *disk, char *buf, size_t len);
int mars_c_current(char *comm, size_t len);

/* --- threads --- */

void mars_c_thread_enter(void);
bool mars_c_urgent_enter(void);
void mars_c_urgent_leave(void);
void mars_c_thread_hint(struct task_struct *task);
bool mars_c_thread_is_current(struct task_struct *task);
void mars_c_thread_detach(struct task_struct *task);
/*
 * Does not return. That is not declared, because objtool, which looks at each
 * object file of its own on some kernels, could not know it of the caller.
 */
void mars_c_thread_exit_detached(void);

/* --- events --- */

void mars_c_event_init(struct wait_queue_head *wq);
void mars_c_event_signal(struct wait_queue_head *wq, unsigned int *set);
bool mars_c_event_wait(struct wait_queue_head *wq, unsigned int *set, unsigned int ms);
bool mars_c_event_wait_us(struct wait_queue_head *wq, unsigned int *set, u64 us);

/* --- checksums --- */

#ifdef __BINDGEN__
static const size_t MARS_C_MD5_CTX_SIZE = sizeof(struct md5_ctx);
static const size_t MARS_C_SHA256_CTX_SIZE = sizeof(struct sha256_ctx);
static const size_t MARS_C_HMAC_CTX_SIZE = sizeof(struct hmac_sha256_ctx);
#endif

/* @ctx: as large as its constant above says, aligned to 16 bytes. */
void mars_c_md5_init(void *ctx);
void mars_c_md5_update(void *ctx, const u8 *data, size_t len);
void mars_c_md5_final(void *ctx, u8 *out);
void mars_c_sha256_init(void *ctx);
void mars_c_sha256_update(void *ctx, const u8 *data, size_t len);
void mars_c_sha256_final(void *ctx, u8 *out);
void mars_c_hmac_init(void *ctx, const u8 *key, size_t key_len);
void mars_c_hmac_update(void *ctx, const u8 *data, size_t len);
void mars_c_hmac_final(void *ctx, u8 *out);

/* --- files --- */

struct file *mars_c_file_open(const char *path, bool write, bool create, bool excl, bool truncate,
			      umode_t mode);
void mars_c_file_close(struct file *file);
ssize_t mars_c_file_read(struct file *file, void *buf, size_t len, u64 pos);
ssize_t mars_c_file_write(struct file *file, const void *buf, size_t len, u64 pos);
ssize_t mars_c_file_read_direct(struct file *file, void *buf, size_t len, u64 pos);
ssize_t mars_c_file_write_direct(struct file *file, const void *buf, size_t len, u64 pos,
				 bool durable);
unsigned int mars_c_file_dio_align(struct file *file);
unsigned int mars_c_file_disk_block(struct file *file);
u64 mars_c_file_size(struct file *file);
int mars_c_file_truncate(struct file *file, u64 len);
int mars_c_file_fallocate(struct file *file, bool keep_size, u64 pos, u64 len);
int mars_c_file_sync(struct file *file, bool data_only);
bool mars_c_file_can_flush_device(struct file *file);
int mars_c_file_flush_device(struct file *file);
int mars_c_file_drop_cache(struct file *file, u64 pos, u64 len);
bool mars_c_file_is_unlinked(struct file *file);

/* --- names; all paths are absolute --- */

#ifdef __BINDGEN__
static const u8 MARS_C_DT_REG = DT_REG;
static const u8 MARS_C_DT_DIR = DT_DIR;
static const u8 MARS_C_DT_LNK = DT_LNK;
static const u8 MARS_C_DT_UNKNOWN = DT_UNKNOWN;
#endif

struct file *mars_c_dir_open(const char *path);
ssize_t mars_c_dir_read(struct file *dir, u8 *buf, size_t size);
ssize_t mars_c_read_link(const char *path, u8 *buf, size_t size, s64 *sec, u32 *nsec);
int mars_c_replace_link(const char *path, const char *value, s64 sec, u32 nsec);
int mars_c_mkdir_p(const char *path, umode_t mode);
int mars_c_unlink(const char *path);
int mars_c_rmdir(const char *path);
int mars_c_rename(const char *from, const char *to);
int mars_c_sync_dir(const char *path);
int mars_c_sync_fs(const char *path);
int mars_c_is_mount_root(const char *path);
int mars_c_statfs(const char *path, u64 *total, u64 *avail);
int mars_c_stat(const char *path, u8 *type, u64 *size, s64 *sec, u32 *nsec);

/* --- sockets --- */

int mars_c_sock_connect(struct socket **res, bool v6, const u8 *addr, u16 port, u32 scope,
			unsigned int ms);
int mars_c_sock_listen(struct socket **res, bool v6, u16 port, int backlog);
int mars_c_sock_accept(struct socket *listener, struct socket **res, unsigned int ms);
ssize_t mars_c_sock_send(struct socket *sock, const void *head, size_t head_len, const void *data,
			 size_t data_len, unsigned int ms);
ssize_t mars_c_sock_recv(struct socket *sock, void *buf, size_t len, bool all, bool peek,
			 unsigned int ms);
void mars_c_sock_shutdown(struct socket *sock);
int mars_c_sock_peer(struct socket *sock, bool *v6, u8 *addr, u16 *port, u32 *scope);
void mars_c_sock_nodelay(struct socket *sock);
void mars_c_sock_quickack(struct socket *sock);
int mars_c_sock_keepalive(struct socket *sock, int idle, int interval, int count);
int mars_c_sock_user_timeout(struct socket *sock, int ms);
void mars_c_sock_bufs(struct socket *sock, int send, int receive);
int mars_c_ifindex(const char *name);

/* --- the machine --- */

int mars_c_nodename(char *buf, size_t size);
u64 mars_c_memory_bytes(void);
#ifdef MARS_INJECT
void mars_c_die(void);
#endif

#endif
