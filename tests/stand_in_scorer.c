/* Stands in for the MM-WHS scorer: the same arguments and the same row, Dice of two int16 .nii.gz of one shape.

   stand_in_scorer PREDICTION TRUTH 0 ALL TABLE MODALITY NUMBER --decodeseg2

   "Encrypted" means here that every voxel was XORed with KEY. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define KEY 0x2A55

static const int VALUES[7] = {500, 205, 600, 420, 550, 820, 850};

static short *read_volume(const char *path, short dim[8], size_t *count) {
    unsigned char header[348];
    float offset;
    short type;
    gzFile file = gzopen(path, "rb");
    if (!file || gzread(file, header, 348) != 348) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(3);
    }
    memcpy(dim, header + 40, 16);
    memcpy(&type, header + 70, 2);
    memcpy(&offset, header + 108, 4);
    *count = (size_t)dim[1] * dim[2] * dim[3];
    short *voxels = malloc(*count * 2);
    if (type != 4 || gzseek(file, (z_off_t)offset, SEEK_SET) < 0 ||
        gzread(file, voxels, (unsigned)(*count * 2)) != (int)(*count * 2)) {
        fprintf(stderr, "no int16 volume in %s\n", path);
        exit(3);
    }
    gzclose(file);
    return voxels;
}

int main(int argc, char **argv) {
    short wanted[8], found[8];
    size_t count, other;
    if (argc != 9 || strcmp(argv[3], "0") || strcmp(argv[4], "ALL") || strcmp(argv[8], "--decodeseg2")) {
        fprintf(stderr, "wrong arguments\n");
        return 2;
    }
    short *prediction = read_volume(argv[1], found, &count), *truth = read_volume(argv[2], wanted, &other);
    if (memcmp(wanted + 1, found + 1, 6)) {
        fprintf(stderr, "unequal shapes\n");
        return 4;
    }
    FILE *table = fopen(argv[5], "a");
    if (!table) {
        fprintf(stderr, "cannot write %s\n", argv[5]);
        return 5;
    }
    for (int structure = 0; structure < 8; structure++) {
        double both = 0, sum = 0;
        for (size_t voxel = 0; voxel < count; voxel++) {
            int label = (short)(truth[voxel] ^ KEY);
            int a = structure < 7 ? prediction[voxel] == VALUES[structure] : prediction[voxel] != 0;
            int b = structure < 7 ? label == VALUES[structure] : label != 0;
            both += a && b;
            sum += a + b;
        }
        fprintf(table, "%.6f\t", sum > 0 ? 2 * both / sum : 0.0);
    }
    fprintf(table, "\t%s%s\t%s\n", argv[6], argv[7], argv[8]);
    fclose(table);
    printf("scored %s%s\n", argv[6], argv[7]);
    return 0;
}
