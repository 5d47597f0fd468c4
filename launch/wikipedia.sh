# shellcheck shell=bash
# Sourced by launchers that train on real text, after here.sh: DUMP is a hundred articles of the English Wikipedia of 2016,
# which are the tests' data of a package; `made` runs `d2l data` where the folder is not there yet.
DUMP=data/gensim/gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2
if [[ ! -e $DUMP ]]; then
    python -m pip download --quiet --no-deps --dest data/gensim gensim==4.4.0
    python -m zipfile -e data/gensim/gensim-4.4.0-*.whl data/gensim
fi
made() { # folder, arguments
    [[ -e "data/$1" ]] || d2l data "${@:2}" --out "data/$1"
}
