"The order of the test files: those that take minutes first, so that two cores end together."

LONGEST = ('test_training', 'test_teacher', 'test_own_pictures', 'test_vgg', 'test_packed',
           'test_convert', 'test_reference', 'test_promises', 'test_notebooks', 'test_fastai')

def place(item):
    "files of `LONGEST` in its order, then the others as they were"
    stem = item.path.stem
    return LONGEST.index(stem) if stem in LONGEST else len(LONGEST)

def pytest_collection_modifyitems(items):
    "`make test` deals out whole files; one that is begun last would be waited for alone"
    items.sort(key=place)
