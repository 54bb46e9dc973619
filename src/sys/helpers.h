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
#include <linux/types.h>
/* --- includes of the other half --- */

/* --- block: memory --- */

void *mars_c_buf_alloc(size_t len, bool zero);
void mars_c_buf_free(void *addr, size_t len);
unsigned int mars_c_noio_save(void);
void mars_c_noio_restore(unsigned int flags);

/* --- block: bio --- */

#ifdef __BINDGEN__
static const blk_opf_t MARS_C_REQ_SYNC = REQ_SYNC;
static const blk_opf_t MARS_C_REQ_FUA = REQ_FUA;
static const blk_opf_t MARS_C_REQ_PREFLUSH = REQ_PREFLUSH;
static const blk_opf_t MARS_C_REQ_RAHEAD = REQ_RAHEAD;
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
bool mars_c_bdev_write_cache(struct block_device *bdev);
bool mars_c_bdev_rotational(struct block_device *bdev);
int mars_c_bdev_rw(struct block_device *bdev, bool write, bool fua, void *addr, size_t len, u64 sector);

/* --- block: disk --- */

struct gendisk *mars_c_disk_alloc(const struct block_device_operations *fops, void *private_data,
				  unsigned int logical_block_size, unsigned int physical_block_size,
				  unsigned int io_min, unsigned int io_opt,
				  unsigned int dma_alignment, bool write_cache, bool rotational);
int mars_c_disk_add(struct gendisk *disk, const char *name, u64 sectors);
void mars_c_disk_released(void);
unsigned int mars_c_disk_openers(struct gendisk *disk);
void mars_c_disk_lock(struct gendisk *disk);
void mars_c_disk_unlock(struct gendisk *disk);
int mars_c_disk_holder(struct gendisk *disk, char *buf, size_t len);
int mars_c_current(char *comm, size_t len);

/* --- the other half --- */

#endif
